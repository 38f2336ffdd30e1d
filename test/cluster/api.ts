import { readFile } from "node:fs/promises";
import http from "node:http";
import https from "node:https";
import { pki } from "./certificates.ts";
import type { ClusterPlan } from "./plan.ts";

/** Status and body of a GET, as the cluster's administrator. */
export const get = async (plan: ClusterPlan, url: string): Promise<{ status: number; body: string }> => {
  const at = pki(plan);
  const tls = url.startsWith("https:");
  const [ca, cert, key] = tls
    ? await Promise.all([at.ca.cert, at.admin.cert, at.admin.key].map((path) => readFile(path)))
    : [];
  return new Promise((resolve, reject) => {
    // The components that serve on loopback sign their certificates themselves, in memory.
    const known = new URL(url).hostname === plan.address;
    const options = tls ? { ca, cert, key, rejectUnauthorized: known, agent: false } : { agent: false };
    const request = (tls ? https : http).get(url, { ...options, timeout: 3000 }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("end", () =>
        resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks).toString() }),
      );
      response.on("error", reject);
    });
    request.on("timeout", () => request.destroy(new Error(`Cannot get ${url}: no answer in 3 s`)));
    request.on("error", reject);
  });
};
