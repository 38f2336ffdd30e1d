import { request } from "node:https";
import type { KubeConfig } from "@bulkhead/lib/kube/config.ts";

/** What the API server answered, with the warnings that kubectl would print. */
export type Answer = {
  status: number;
  body: { message?: string; metadata?: object; spec?: object; status?: object };
  warnings: string[];
};

/** Who asks, where it is not the configuration's own user. */
export type As = { user: string; groups?: string[] };

export type Asked = {
  method: string;
  path: string;
  body?: object;
  contentType?: string;
  as?: As;
};

/** One request of any kind, in another's name where `as` says so: what lib/kube's client, for our programs, leaves out. */
export const ask = async (config: KubeConfig, asked: Asked): Promise<Answer> => {
  const { method, path, body, as } = asked;
  const { hostname, port } = new URL(config.server);
  const headers = await config.headers();
  return new Promise((resolve, reject) => {
    const sent = request(
      {
        ...config.tls,
        hostname,
        port,
        path,
        method,
        timeout: 10_000,
        headers: {
          ...headers,
          ...(body ? { "content-type": asked.contentType ?? "application/json" } : {}),
          ...(as ? { "impersonate-user": as.user } : {}),
          ...(as?.groups ? { "impersonate-group": as.groups } : {}),
        },
      },
      (response) => {
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.on("error", reject);
        response.on("end", () => {
          // RFC 7234: 299 - "text"; one header line may carry several.
          const warnings = (response.rawHeaders ?? []).flatMap((name, at) =>
            at % 2 === 0 && name.toLowerCase() === "warning"
              ? [...(response.rawHeaders[at + 1] ?? "").matchAll(/299 - "((?:[^"\\]|\\.)*)"/g)].map(
                  ([, text = ""]) => text.replaceAll(/\\(.)/g, "$1"),
                )
              : [],
          );
          const text = Buffer.concat(chunks).toString();
          const isJson = response.headers["content-type"]?.startsWith("application/json");
          resolve({
            status: response.statusCode ?? 0,
            body: isJson ? JSON.parse(text) : { message: text },
            warnings,
          });
        });
      },
    );
    sent.on("timeout", () => sent.destroy(new Error(`no answer within 10 s: ${method} ${path}`)));
    sent.on("error", reject);
    sent.end(body ? JSON.stringify(body) : undefined);
  });
};
