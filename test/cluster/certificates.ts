import { generateKeyPairSync } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { run } from "../tools/run.ts";
import { apiUrl, type ClusterPlan } from "./plan.ts";

/** A certificate and its key, as paths. */
export type Pair = { cert: string; key: string };

/** Where the certificates of a cluster are. */
export const pki = (plan: ClusterPlan) => {
  const dir = join(plan.disk, "pki");
  const pair = (name: string): Pair => ({ cert: join(dir, `${name}.crt`), key: join(dir, `${name}.key`) });
  return {
    dir,
    ca: pair("ca"),
    apiServer: pair("apiserver"),
    kubeletClient: pair("apiserver-kubelet-client"),
    admin: pair("admin"),
    controllerManager: pair("controller-manager"),
    scheduler: pair("scheduler"),
    node: (name: string): Pair => pair(`node-${name}`),
    serviceAccount: { key: join(dir, "sa.key"), pub: join(dir, "sa.pub") },
  };
};

type Subject = {
  pair: Pair;
  organization?: string;
  name: string;
  usage: "clientAuth" | "serverAuth";
  alt?: string[];
};

/** Makes what is missing of a cluster's certificates: one authority, and one pair per component and node. */
export const makeCertificates = async (plan: ClusterPlan, signal: AbortSignal): Promise<void> => {
  const at = pki(plan);
  await mkdir(at.dir, { recursive: true, mode: 0o700 });
  if (!existsSync(at.ca.cert))
    await openssl(
      at.ca,
      `/CN=bulkhead-${plan.name}`,
      ["-addext", "keyUsage=critical,keyCertSign,cRLSign"],
      signal,
    );
  if (!existsSync(at.serviceAccount.pub)) {
    const keys = generateKeyPairSync("rsa", { modulusLength: 2048 });
    await writeFile(at.serviceAccount.key, keys.privateKey.export({ type: "pkcs8", format: "pem" }), {
      mode: 0o600,
    });
    await writeFile(at.serviceAccount.pub, keys.publicKey.export({ type: "spki", format: "pem" }));
  }
  const subjects: Subject[] = [
    {
      pair: at.apiServer,
      name: "kube-apiserver",
      usage: "serverAuth",
      alt: [
        `IP:${plan.address}`,
        `IP:${plan.serviceAddress}`,
        "IP:127.0.0.1",
        "DNS:localhost",
        ...["", ".default", ".default.svc", ".default.svc.cluster.local"].map(
          (tail) => `DNS:kubernetes${tail}`,
        ),
      ],
    },
    {
      pair: at.kubeletClient,
      organization: "system:masters",
      name: "kube-apiserver-kubelet-client",
      usage: "clientAuth",
    },
    { pair: at.admin, organization: "system:masters", name: "admin", usage: "clientAuth" },
    { pair: at.controllerManager, name: "system:kube-controller-manager", usage: "clientAuth" },
    { pair: at.scheduler, name: "system:kube-scheduler", usage: "clientAuth" },
    ...plan.nodes.map(
      (node): Subject => ({
        pair: at.node(node.name),
        organization: "system:nodes",
        name: `system:node:${node.name}`,
        usage: "clientAuth",
      }),
    ),
  ];
  await Promise.all(
    subjects
      .filter(({ pair }) => !existsSync(pair.cert))
      .map(({ pair, organization, name, usage, alt }) =>
        openssl(
          pair,
          `${organization === undefined ? "" : `/O=${organization}`}/CN=${name}`,
          [
            ...["-CA", at.ca.cert, "-CAkey", at.ca.key],
            ...["-addext", "basicConstraints=critical,CA:FALSE"],
            ...["-addext", `extendedKeyUsage=${usage}`],
            ...(alt === undefined ? [] : ["-addext", `subjectAltName=${alt.join(",")}`]),
          ],
          signal,
        ),
      ),
  );
};

const openssl = async (pair: Pair, subject: string, more: string[], signal: AbortSignal): Promise<void> => {
  const fresh = `${pair.cert}.new`;
  await run(
    [
      ...["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"],
      ...["-days", "3650", "-subj", subject, "-keyout", pair.key, "-out", fresh, ...more],
    ],
    { signal },
  );
  await rename(fresh, pair.cert);
};

/** A kubeconfig with the certificates inside, so that it can be moved. */
export const kubeconfig = (
  plan: ClusterPlan,
  user: string,
  pem: { ca: string; cert: string; key: string },
): string => {
  const data = (text: string): string => Buffer.from(text).toString("base64");
  return `${JSON.stringify(
    {
      apiVersion: "v1",
      kind: "Config",
      "current-context": plan.name,
      clusters: [
        { name: plan.name, cluster: { server: apiUrl(plan), "certificate-authority-data": data(pem.ca) } },
      ],
      users: [
        { name: user, user: { "client-certificate-data": data(pem.cert), "client-key-data": data(pem.key) } },
      ],
      contexts: [{ name: plan.name, context: { cluster: plan.name, user } }],
    },
    undefined,
    2,
  )}\n`;
};
