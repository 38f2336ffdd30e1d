import { type Command, InvalidArgumentError, Option } from "commander";
import { endpointPattern } from "./settings.ts";

/** What {@link tracingFlags} gives. */
export type TracingFlags = { traceEndpoint: string; traceSampling: number };

/** Parses the flag of an endpoint: an http or https URL, or nothing. */
export const endpointFlag = (value: string): string => {
  if (value !== "" && !endpointPattern.test(value))
    throw new InvalidArgumentError("an http or https URL is expected");
  return value;
};

const ratio = (value: string): number => {
  const number = Number(value);
  if (value.trim() === "" || !(number >= 0 && number <= 1))
    throw new InvalidArgumentError("a number from 0 to 1 is expected");
  return number;
};

/** The flags by which a program is told where its traces go. */
export const tracingFlags = (command: Command): Command =>
  command
    .addOption(
      new Option(
        "--trace-endpoint <url>",
        "base URL of an OTLP receiver (HTTP with protobuf); empty: OpenTelemetry's environment variables decide",
      )
        .argParser(endpointFlag)
        .default(""),
    )
    .addOption(
      new Option("--trace-sampling <ratio>", "of the traces that begin here, such a part is told")
        .argParser(ratio)
        .default(1),
    );
