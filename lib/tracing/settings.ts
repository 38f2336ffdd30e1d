import { messageOf } from "../std/errors.ts";

/** A program's own setting. Without an endpoint OpenTelemetry's environment variables decide. */
export type TracingConfig = {
  /** Base URL of an OTLP receiver, HTTP with protobuf: spans go to its /v1/traces. Empty: none. */
  endpoint: string;
  /** Of traces that begin in this program, such a part is told; those that go on are as their callers say. */
  samplingRatio: number;
};

/** What an endpoint looks like. */
export const endpointPattern = /^https?:\/\/[^\s/]+\S*$/;

/** Whether a trace that begins here is told, and whether a caller's word goes before that. */
export type Sampling = { ratio: number; followsCaller: boolean };

export type Settings = { url: string; sampling: Sampling };

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * What to do: nothing (undefined), export, or say why not. Of the environment this reads OTEL_SDK_DISABLED,
 * OTEL_TRACES_EXPORTER, OTEL_TRACES_SAMPLER(_ARG), OTEL_EXPORTER_OTLP_(TRACES_)ENDPOINT and _PROTOCOL; the libraries
 * read more (headers, certificates, time-outs, resource attributes).
 */
export const settingsOf = (
  { endpoint, samplingRatio }: TracingConfig,
  env: Environment,
): Settings | { refused: string } | undefined => {
  const value = (name: string): string | undefined => env[name]?.trim() || undefined;
  if (value("OTEL_SDK_DISABLED")?.toLowerCase() === "true") return undefined;
  if (endpoint !== "") return at(`${endpoint.replace(/\/+$/, "")}/v1/traces`, samplesOf(samplingRatio));
  const exporter = value("OTEL_TRACES_EXPORTER") ?? "otlp";
  if (exporter === "none") return undefined;
  const own = value("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
  const base = value("OTEL_EXPORTER_OTLP_ENDPOINT");
  const url = own ?? (base && `${base.replace(/\/+$/, "")}/v1/traces`);
  if (url === undefined) return undefined;
  if (exporter !== "otlp") return { refused: `OTEL_TRACES_EXPORTER=${exporter}: only otlp is known` };
  const protocol =
    value("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") ?? value("OTEL_EXPORTER_OTLP_PROTOCOL") ?? "http/protobuf";
  if (protocol !== "http/protobuf")
    return { refused: `OTLP by ${protocol} is not spoken: only http/protobuf, as a rule on port 4318` };
  return at(url, samplingOf(value("OTEL_TRACES_SAMPLER"), value("OTEL_TRACES_SAMPLER_ARG")));
};

const at = (url: string, sampling: Sampling | { refused: string }): Settings | { refused: string } => {
  if ("refused" in sampling) return sampling;
  try {
    if (/^https?:$/.test(new URL(url).protocol)) return { url, sampling };
    return { refused: "the endpoint is no http or https URL" };
  } catch (error) {
    return { refused: `the endpoint is no URL: ${messageOf(error)}` };
  }
};

const samplesOf = (ratio: number): Sampling => ({ ratio, followsCaller: true });

const samplingOf = (
  sampler = "parentbased_always_on",
  argument: string | undefined,
): Sampling | { refused: string } => {
  const [, parent, name] = /^(parentbased_)?(.+)$/.exec(sampler) ?? [];
  const followsCaller = parent !== undefined;
  switch (name) {
    case "always_on":
      return { ratio: 1, followsCaller };
    case "always_off":
      return { ratio: 0, followsCaller };
    case "traceidratio": {
      const ratio = Number(argument ?? 1);
      return ratio >= 0 && ratio <= 1
        ? { ratio, followsCaller }
        : { refused: `OTEL_TRACES_SAMPLER_ARG=${argument}: a number from 0 to 1 is expected` };
    }
    default:
      return { refused: `OTEL_TRACES_SAMPLER=${sampler} is not known` };
  }
};
