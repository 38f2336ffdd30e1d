{{- define "bulkhead.name" -}}
{{- if contains "bulkhead" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-bulkhead" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "bulkhead.labels" -}}
app.kubernetes.io/name: bulkhead
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.extraLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "bulkhead.selector" -}}
app.kubernetes.io/name: bulkhead
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bulkhead.tag" -}}
{{- .Values.image.tag | default .Chart.AppVersion -}}
{{- end }}

{{- /* The image of a component: (list $ "operator"). A digest says more than a tag, which may move. */ -}}
{{- define "bulkhead.image" -}}
{{- $values := (index . 0).Values.image -}}
{{- $name := index . 1 -}}
{{- $digest := get $values.digests (eq $name "operator" | ternary "operator" "nodeAgent") -}}
{{ $values.registry }}/{{ $values.repository }}/{{ $name }}{{ with $digest }}@{{ . }}{{ else }}:{{ include "bulkhead.tag" (index $ 0) }}{{ end }}
{{- end }}

{{- define "bulkhead.apiServer" -}}
{{- with .Values.apiServer.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.apiServer.port }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ . | toString | quote }}
- name: KUBERNETES_SERVICE_PORT_HTTPS
  value: {{ . | toString | quote }}
{{- end }}
{{- end }}

{{- /* A container without any power over its node, as this user and group: Pod Security Standard "restricted". */ -}}
{{- define "bulkhead.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "bulkhead.tracing" -}}
{{- with .Values.tracing.endpoint }}
- --trace-endpoint={{ . }}
{{- end }}
{{- if or .Values.tracing.endpoint .Values.tracing.nodeEndpoint }}
- --trace-sampling={{ .Values.tracing.samplingRatio }}
{{- end }}
{{- end }}
