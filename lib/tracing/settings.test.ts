import { expect, test } from "vitest";
import { settingsOf } from "./settings.ts";

const off = { endpoint: "", samplingRatio: 1 };
const always = { ratio: 1, followsCaller: true };

test.each([
  ["nothing is configured", {}],
  [
    "the environment says none",
    { OTEL_TRACES_EXPORTER: "none", OTEL_EXPORTER_OTLP_ENDPOINT: "http://a:4318" },
  ],
  ["the SDK is disabled", { OTEL_SDK_DISABLED: "true", OTEL_EXPORTER_OTLP_ENDPOINT: "http://a:4318" }],
  ["the endpoint is empty", { OTEL_EXPORTER_OTLP_ENDPOINT: " " }],
])("no traces when %s", (_, env) => {
  expect(settingsOf(off, env)).toBeUndefined();
});

test("a program's own endpoint goes before the environment, with its own ratio", () => {
  const env = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://other:4318", OTEL_TRACES_SAMPLER: "always_off" };
  expect(settingsOf({ endpoint: "http://a:4318/", samplingRatio: 0.25 }, env)).toEqual({
    url: "http://a:4318/v1/traces",
    sampling: { ratio: 0.25, followsCaller: true },
  });
});

test("the environment's endpoint is a base URL; the one of traces alone is taken as it is", () => {
  const base = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://a:4318/otlp/" };
  expect(settingsOf(off, base)).toEqual({ url: "http://a:4318/otlp/v1/traces", sampling: always });
  expect(settingsOf(off, { ...base, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "https://b/traces" })).toEqual({
    url: "https://b/traces",
    sampling: always,
  });
});

test.each([
  ["always_on", undefined, { ratio: 1, followsCaller: false }],
  ["always_off", undefined, { ratio: 0, followsCaller: false }],
  ["traceidratio", "0.5", { ratio: 0.5, followsCaller: false }],
  ["parentbased_always_on", undefined, always],
  ["parentbased_always_off", undefined, { ratio: 0, followsCaller: true }],
  ["parentbased_traceidratio", undefined, always],
])("OTEL_TRACES_SAMPLER=%s with argument %s", (sampler, argument, sampling) => {
  const env = {
    OTEL_EXPORTER_OTLP_ENDPOINT: "http://a:4318",
    OTEL_TRACES_SAMPLER: sampler,
    OTEL_TRACES_SAMPLER_ARG: argument,
  };
  expect(settingsOf(off, env)).toMatchObject({ sampling });
});

test.each([
  [{ OTEL_EXPORTER_OTLP_PROTOCOL: "grpc" }, "OTLP by grpc"],
  [{ OTEL_TRACES_EXPORTER: "zipkin" }, "OTEL_TRACES_EXPORTER=zipkin"],
  [{ OTEL_TRACES_SAMPLER: "jaeger_remote" }, "OTEL_TRACES_SAMPLER=jaeger_remote"],
  [
    { OTEL_TRACES_SAMPLER: "traceidratio", OTEL_TRACES_SAMPLER_ARG: "2" },
    "OTEL_TRACES_SAMPLER_ARG=2: a number",
  ],
  [{ OTEL_EXPORTER_OTLP_ENDPOINT: "collector:4318" }, "no http or https URL"],
  [{ OTEL_EXPORTER_OTLP_ENDPOINT: "//collector" }, "no URL"],
])("%j is refused in words", (env, why) => {
  const asked = settingsOf(off, { OTEL_EXPORTER_OTLP_ENDPOINT: "http://a:4318", ...env });
  expect(asked).toEqual({ refused: expect.stringContaining(why) });
});
