import { readFile } from "node:fs/promises";
import type { SecureContextOptions } from "node:tls";
import { messageOf, RuntimeError } from "../std/errors.ts";

/** TLS towards the API server. */
export type TlsOptions = Pick<SecureContextOptions, "ca" | "cert" | "key" | "pfx" | "passphrase"> & {
  servername?: string;
  rejectUnauthorized?: boolean;
};

/** How to reach an API server: its address, TLS, and the headers that authenticate a request. */
export type KubeConfig = {
  server: string;
  tls: TlsOptions;
  /** Asked before each request: tokens of service accounts expire and are renewed on disk. */
  headers(): Promise<Record<string, string>>;
};

const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount";

/** The token is read again at most this often, as client-go does. */
const tokenLifetime = 60_000;

const tokenReader = (path: string, now: () => number) => {
  let cached: { token: string; at: number } | undefined;
  return async (): Promise<string> => {
    if (!cached || now() - cached.at > tokenLifetime) {
      cached = { token: (await readFile(path, "utf8")).trim(), at: now() };
    }
    return cached.token;
  };
};

/**
 * The configuration of a pod: its service account.
 * Done without @kubernetes/client-node, whose import costs 80 MB of memory (docs/adr/0003).
 */
export const inClusterConfig = async (
  options: { env?: NodeJS.ProcessEnv; directory?: string; now?: () => number } = {},
): Promise<KubeConfig> => {
  const env = options.env ?? process.env;
  const directory = options.directory ?? serviceAccount;
  const host = env.KUBERNETES_SERVICE_HOST;
  const port = env.KUBERNETES_SERVICE_PORT_HTTPS ?? env.KUBERNETES_SERVICE_PORT;
  if (!host || !port) {
    throw new RuntimeError(
      "failed-precondition",
      "Cannot find the API server: KUBERNETES_SERVICE_HOST is not set and no kubeconfig was named",
    );
  }
  const ca = await readFile(`${directory}/ca.crt`);
  // No wall clock: one that was set back would keep a token past its end.
  const token = tokenReader(`${directory}/token`, options.now ?? (() => performance.now()));
  return {
    server: `https://${host.includes(":") ? `[${host}]` : host}:${port}`,
    tls: { ca },
    headers: async () => ({ authorization: `Bearer ${await token()}` }),
  };
};

/**
 * The configuration of a kubeconfig file, with whatever authenticator its user names: client-node does that, but for exec
 * plugins, which it would wait for without end.
 */
export const kubeconfigFile = async (path: string): Promise<KubeConfig> =>
  (await userConfig({ file: path })).config;

/** A person's configuration: the namespace is that of the context, or `default`. */
export type UserConfig = { config: KubeConfig; namespace: string };

/**
 * What kubectl would use: `file`, else the files of $KUBECONFIG, else ~/.kube/config; `context` instead of the
 * current one.
 */
export const userConfig = async (from: { file?: string; context?: string }): Promise<UserConfig> => {
  // Loaded only where a kubeconfig is used: see inClusterConfig.
  const [{ KubeConfig: Loader }, { ExecConfig, execPlugin }] = await Promise.all([
    import("@kubernetes/client-node"),
    import("./exec-plugin.ts"),
  ]);
  const loader = new Loader();
  const path = from.file ?? process.env.KUBECONFIG ?? "~/.kube/config";
  try {
    if (from.file === undefined) loader.loadFromDefault();
    else loader.loadFromFile(from.file);
  } catch (error) {
    throw new RuntimeError("invalid-argument", `Cannot read kubeconfig "${path}": ${messageOf(error)}`, {
      cause: error,
    });
  }
  if (from.context !== undefined) {
    if (!loader.getContexts().some(({ name }) => name === from.context))
      throw new RuntimeError(
        "invalid-argument",
        `Cannot use context "${from.context}": "${path}" has none of that name`,
      );
    loader.setCurrentContext(from.context);
  }
  const cluster = loader.getCurrentCluster();
  if (!cluster) {
    throw new RuntimeError("invalid-argument", `Cannot use kubeconfig "${path}": it has no current cluster`);
  }
  const namespace = loader.getContextObject(loader.getCurrentContext())?.namespace ?? "default";
  const user = loader.getCurrentUser();
  let plugin: ReturnType<typeof execPlugin> | undefined;
  if (user?.exec) {
    const exec = ExecConfig.safeParse(user.exec);
    if (!exec.success)
      throw new RuntimeError(
        "invalid-argument",
        `Cannot use kubeconfig "${path}": user "${user.name}": exec: ${messageOf(exec.error)}`,
      );
    plugin = execPlugin(exec.data);
    Object.assign(user, { exec: undefined });
  }
  const authenticate = async () => {
    const options: TlsOptions & { headers?: Record<string, string>; auth?: string } = {};
    await loader.applyToHTTPSOptions(options as Parameters<typeof loader.applyToHTTPSOptions>[0]);
    const { token, clientCertificateData: cert, clientKeyData: key } = (await plugin?.()) ?? {};
    return {
      ...options,
      ...(cert === undefined ? {} : { cert }),
      ...(key === undefined ? {} : { key }),
      ...(token === undefined ? {} : { headers: { ...options.headers, authorization: `Bearer ${token}` } }),
    };
  };
  const first = await authenticate();
  const tls: TlsOptions = {};
  for (const key of ["ca", "cert", "key", "pfx", "passphrase", "servername", "rejectUnauthorized"] as const) {
    if (first[key] !== undefined) Object.assign(tls, { [key]: first[key] });
  }
  const config: KubeConfig = {
    server: cluster.server.replace(/\/$/, ""),
    tls,
    headers: async () => {
      const { headers, auth } = await authenticate();
      return {
        ...headers,
        ...(auth ? { authorization: `Basic ${Buffer.from(auth).toString("base64")}` } : {}),
      };
    },
  };
  return { config, namespace };
};

/** `path`, else $KUBECONFIG, else the pod's service account. */
export const loadConfig = async (path?: string): Promise<KubeConfig> => {
  const file = path ?? process.env.KUBECONFIG;
  return file ? kubeconfigFile(file) : inClusterConfig();
};
