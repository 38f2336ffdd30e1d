import { execFile } from "node:child_process";
import { z } from "zod";
import { RuntimeError } from "../std/errors.ts";

/** What a kubeconfig's user says of the program that knows its credentials. */
export const ExecConfig = z.object({
  apiVersion: z.string().optional(),
  command: z.string().min(1),
  args: z.array(z.string()).nullish(),
  env: z.array(z.object({ name: z.string(), value: z.string() })).nullish(),
});
export type ExecConfig = z.infer<typeof ExecConfig>;

/** Its answer, an ExecCredential of client.authentication.k8s.io. */
const Answer = z.object({
  status: z.object({
    token: z.string().optional(),
    clientCertificateData: z.string().optional(),
    clientKeyData: z.string().optional(),
    expirationTimestamp: z.string().optional(),
  }),
});
export type Credential = z.infer<typeof Answer>["status"];

/** Somebody may have to log in with a browser meanwhile. */
const deadlineMs = 300_000;

const ask = (config: ExecConfig, timeout: number): Promise<Credential> =>
  new Promise((resolve, reject) => {
    const { apiVersion, command, args } = config;
    const info = { apiVersion, kind: "ExecCredential", spec: { interactive: false } };
    const child = execFile(
      command,
      args ?? [],
      {
        ...{ timeout, killSignal: "SIGKILL", maxBuffer: 1024 * 1024, encoding: "utf8" },
        env: {
          ...process.env,
          ...Object.fromEntries((config.env ?? []).map(({ name, value }) => [name, value])),
          KUBERNETES_EXEC_INFO: JSON.stringify(info),
        },
      },
      (error, stdout, stderr) => {
        const cannot = (code: "deadline-exceeded" | "permission-denied", why: string) =>
          reject(
            new RuntimeError(code, `Cannot get credentials from "${command}" (kubeconfig): ${why}`, {
              cause: error,
            }),
          );
        if (error?.killed && error.code === null)
          return cannot("deadline-exceeded", `no answer after ${timeout / 1000} s`);
        const ended = typeof error?.code === "number" ? `exit code ${error.code}` : error?.message;
        if (ended !== undefined) return cannot("permission-denied", stderr.trim().slice(-1000) || ended);
        const answer = Answer.safeParse(parsed(stdout));
        if (!answer.success)
          return cannot("permission-denied", `no ExecCredential: ${z.prettifyError(answer.error)}`);
        resolve(answer.data.status);
      },
    );
    // It is told that nobody types: one that asks all the same must not wait for an answer.
    child.stdin?.on("error", () => {}).end();
  });

const parsed = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
};

/**
 * Asks a kubeconfig's exec plugin for credentials, once for all who wait, and again when they have expired. One that does
 * not answer within the deadline is ended. Errors: deadline-exceeded; permission-denied with what it said.
 */
export const execPlugin = (config: ExecConfig, timeoutMs = deadlineMs): (() => Promise<Credential>) => {
  let answer: Promise<Credential> | undefined;
  let expires = Infinity;
  return () => {
    if (answer === undefined || Date.now() >= expires) {
      expires = Infinity;
      answer = ask(config, timeoutMs).then((credential) => {
        const { expirationTimestamp: end } = credential;
        expires = end === undefined ? Infinity : Date.parse(end);
        return credential;
      });
      answer.catch(() => {
        answer = undefined;
      });
    }
    return answer;
  };
};
