import { spawn } from "node:child_process";
import {
  appendFileSync,
  closeSync,
  createWriteStream,
  existsSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { basename, join } from "node:path";
import type { Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs, promisify } from "node:util";
import {
  create,
  type DescMessage,
  fromBinary,
  type MessageInitShape,
  toBinary,
  toJsonString,
} from "@bufbuild/protobuf";
import { AnySchema, anyPack, timestampNow } from "@bufbuild/protobuf/wkt";
import { BootstrapParamsSchema, BootstrapResultSchema } from "@bulkhead/lib/gen/shim_bootstrap_pb.js";
import { TaskExitSchema, TaskOOMSchema } from "@bulkhead/lib/gen/shim_events_pb.js";
import { Events, ForwardRequestSchema } from "@bulkhead/lib/gen/shim_events_service_pb.js";
import { DeleteResponseSchema, Task } from "@bulkhead/lib/gen/shim_task_v3_pb.js";
import { Status } from "@bulkhead/lib/gen/shim_types_v1_pb.js";
import { RequestSchema, ResponseSchema } from "@bulkhead/lib/gen/ttrpc_pb.js";
import { createTtrpcClient, TtrpcConnection } from "@bulkhead/lib/ttrpc/client.ts";
import { encodeFrame, type Frame, frameDecoder, MessageType, maxData } from "@bulkhead/lib/ttrpc/frame.ts";
import { Server, ServerCredentials, type ServerUnaryCall, type sendUnaryData } from "@grpc/grpc-js";

/**
 * A fake: a shim that keeps to the protocol as far as it is told. It walls nothing off; a container is a process of
 * this machine. What it does wrong is in FAKE_SHIM, a list of words (see {@link Fault}); which stdin it takes in
 * FAKE_TAKES, which reply it gives in FAKE_REPLY, which service it serves in FAKE_VERSION.
 */
export type Fault =
  /** No fault: it speaks gRPC. */
  | "grpc"
  /** `start` ends with an error. */
  | "start-fails"
  /** `start` never ends, and has started a server. */
  | "start-hangs"
  /** `start` ends well, and there is no server. */
  | "no-server"
  /** Connect, and all after it, is answered never. */
  | "deaf"
  /** Create of the pod fails as FAKE_ANSWER says, after FAKE_LOG was logged once. */
  | "pod-fails"
  /** The same of a container. */
  | "create-fails"
  /** Create is answered two seconds late. */
  | "late-create"
  /** Names process 1 as its own and its containers'. */
  | "wrong-pid"
  /** State is answered never. */
  | "state-hangs"
  /** Wait is answered never. */
  | "no-wait"
  /** Wait fails, always. */
  | "wait-fails"
  /** Sends an exit event for a container that runs. */
  | "false-exit"
  /** Sends an exit event when there is one. */
  | "exit-event"
  /** Calls the program of -publish-binary when memory is short. */
  | "publishes-oom"
  /** Kill is answered never. */
  | "kill-hangs"
  /** Kill is answered, and kills nothing. */
  | "kill-lies"
  /** Kill is answered by an error, and kills nothing. */
  | "kill-refuses"
  /** Kill kills, and is answered two seconds later. */
  | "late-kill"
  /** Dies of Kill. */
  | "dies-at-kill"
  /** Sends exit events of containers that run, and out-of-memory events of long names, without end. */
  | "floods-events"
  /** Logs without end. */
  | "floods-log"
  /** Closes its ends of a container's output once that runs. */
  | "closes-stdio"
  /** Opens a container's input and reads nothing. */
  | "holds-stdin"
  /** Takes execs, and says of none that it has ended. */
  | "endless-exec"
  /** Stats is answered by bytes that are no frame. */
  | "garbage"
  /** Stats is answered by a frame over the limit. */
  | "huge"
  /** `delete` prints what is no DeleteResponse. */
  | "delete-garbage"
  /** `delete` never ends. */
  | "delete-hangs";

const has = (fault: Fault): boolean => (process.env.FAKE_SHIM ?? "").split(" ").includes(fault);
const version = process.env.FAKE_VERSION ?? "3";
const forEver = new Promise<never>(() => {});

const { values, positionals } = parseArgs({
  args: process.argv.slice(2).map((arg) => (/^-[a-z]/.test(arg) ? `-${arg}` : arg)),
  options: {
    namespace: { type: "string" },
    address: { type: "string" },
    "publish-binary": { type: "string" },
    id: { type: "string" },
    bundle: { type: "string" },
  },
  allowPositionals: true,
});
const id = values.id ?? "";
const address = join(process.cwd(), "fake.sock");

const formOf = (stdin: Buffer): string => {
  if (stdin.length === 0) return "empty";
  if (stdin[0] === 0x7b) return "bootstrap-json";
  try {
    return fromBinary(BootstrapParamsSchema, stdin).instanceId === id ? "bootstrap" : "options";
  } catch {
    return "options";
  }
};

/** The socket's file is there before anybody listens on it. */
const listens = (): Promise<boolean> =>
  new Promise((resolve) => {
    // Relative: the bundle's path may be too long for a socket.
    const socket = connect(basename(address));
    socket.once("error", () => resolve(false));
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
  });

const start = async (): Promise<void> => {
  const form = formOf(readFileSync(0));
  const takes = process.env.FAKE_TAKES ?? "bootstrap";
  if (form !== takes) throw new Error(`the fake takes ${takes}, not ${form}`);
  if (has("start-fails")) throw new Error("the fake is broken");
  if (!has("no-server")) {
    const [node = "", script = ""] = process.argv;
    spawn(node, [script, ...process.argv.slice(2, -1), "serve"], { detached: true, stdio: "ignore" }).unref();
    while (!(await listens())) await sleep(5);
  }
  if (has("start-hangs")) setInterval(() => {}, 1e6);
  const reply = create(BootstrapResultSchema, {
    version: Number(version),
    address: `unix://${address}`,
    protocol: "ttrpc",
  });
  switch (process.env.FAKE_REPLY ?? "protobuf") {
    case "protobuf":
      process.stdout.write(toBinary(BootstrapResultSchema, reply));
      break;
    case "json":
      process.stdout.write(toJsonString(BootstrapResultSchema, reply));
      break;
    case "plain":
      process.stdout.write(reply.address);
      break;
    case "grpc":
    case "soap":
      process.stdout.write(
        toBinary(BootstrapResultSchema, { ...reply, protocol: process.env.FAKE_REPLY ?? "" }),
      );
      break;
    default:
      process.stdout.write("no address at all");
  }
};

/** A container: the process that its config.json names, without any wall. */
type Container = {
  args: string[];
  stdin: string;
  stdout: string;
  stderr: string;
  pid: number;
  status: Status;
  exit: PromiseWithResolvers<number>;
  code: number;
  pidFile: string;
};
const containers = new Map<string, Container>();

const containerOf = (name: string): Container => {
  const container = containers.get(name);
  if (!container) throw Object.assign(new Error(`no container ${name}`), { code: 5 });
  return container;
};

const publish = async (
  topic: string,
  schema: DescMessage,
  event: MessageInitShape<DescMessage>,
): Promise<void> => {
  using connection = await TtrpcConnection.connect(
    process.env.TTRPC_ADDRESS ?? "",
    AbortSignal.timeout(5000),
  );
  const message = anyPack(schema, create(schema, event));
  await createTtrpcClient(Events, connection).forward({
    envelope: { namespace: values.namespace ?? "", topic, event: message },
  });
};
/** Writes the same without end, and into a file of the bundle how many bytes of it were taken. */
const pour = (to: Writable, bytes: Uint8Array, file: string): void => {
  let taken = 0;
  const more = (): void =>
    void to.write(bytes, () => {
      taken += bytes.length;
      writeFileSync(file, String(taken));
      more();
    });
  to.on("error", () => to.destroy());
  more();
};

/** What a hostile shim does to the socket of events, for as long as they are taken. */
const flood = (name: string): void => {
  const [exit, oom] = [
    {
      topic: "/tasks/exit",
      event: anyPack(TaskExitSchema, create(TaskExitSchema, { containerId: name, id: name })),
    },
    {
      topic: "/tasks/oom",
      event: anyPack(TaskOOMSchema, create(TaskOOMSchema, { containerId: "x".repeat(60_000) })),
    },
  ].map((envelope) => {
    const payload = toBinary(ForwardRequestSchema, create(ForwardRequestSchema, { envelope }));
    const call = create(RequestSchema, { service: Events.typeName, method: "Forward", payload });
    return encodeFrame({
      streamId: 1,
      type: MessageType.request,
      flags: 0,
      data: toBinary(RequestSchema, call),
    });
  });
  const frames = Buffer.concat(
    [...Array.from({ length: 1000 }, () => exit ?? ""), oom ?? ""].map(Buffer.from),
  );
  pour(connect(process.env.TTRPC_ADDRESS ?? "").resume(), frames, "events.taken");
};

const exited = (name: string) =>
  publish("/tasks/exit", TaskExitSchema, { containerId: name, id: name, exitStatus: 0 });

const run = async (name: string, container: Container): Promise<void> => {
  const [program = "", ...args] = container.args;
  // As a real shim: both ends, so that no open waits for the other side.
  const ends = [container.stdout, container.stderr].map((path) =>
    path === "" ? "ignore" : openSync(path, "r+"),
  );
  const child = spawn(program, args, { cwd: "/", stdio: ["ignore", ...ends], detached: true });
  const closeAll = () => {
    for (const fd of ends.splice(0)) if (typeof fd === "number") closeSync(fd);
  };
  if (has("holds-stdin") && container.stdin !== "") openSync(container.stdin, "r+");
  if (has("closes-stdio")) closeAll();
  container.pid = child.pid ?? 0;
  container.status = Status.RUNNING;
  writeFileSync(container.pidFile, String(container.pid));
  child.on("exit", (code, signal) => {
    container.status = Status.STOPPED;
    closeAll();
    container.code = signal === null ? (code ?? 0) : 137;
    container.exit.resolve(container.code);
    if (has("exit-event")) void exited(name);
  });
  if (has("false-exit")) await exited(name);
  if (has("floods-events") && name !== id) flood(name);
  if (has("publishes-oom")) {
    const event = anyPack(TaskOOMSchema, create(TaskOOMSchema, { containerId: name }));
    const args = ["--address", values.address ?? "", "publish", "--topic", "/tasks/oom", "--namespace", "n"];
    const publisher = spawn(values["publish-binary"] ?? "", args, { stdio: ["pipe", "ignore", "ignore"] });
    publisher.stdin.end(toBinary(AnySchema, event));
    await new Promise((resolve) => publisher.on("exit", resolve));
  }
};

type Asked = {
  id: string;
  execId: string;
  bundle: string;
  stdin: string;
  stdout: string;
  stderr: string;
  signal: number;
};
type Method = (request: Asked, socket?: Socket, frame?: Frame) => Promise<Record<string, unknown>>;

/** What each method of the task service answers. */
const methods: Record<string, Method> = {
  Connect: async () => ({ shimPid: has("wrong-pid") ? 1 : process.pid, version }),
  Create: async ({ id: name, bundle, stdin, stdout, stderr }) => {
    const {
      process: { args },
    } = JSON.parse(readFileSync(join(bundle, "config.json"), "utf8"));
    if (has(name === id ? "pod-fails" : "create-fails")) {
      appendFileSync("log", process.env.FAKE_LOG ?? "");
      delete process.env.FAKE_LOG;
      throw new Error(process.env.FAKE_ANSWER);
    }
    // The bundle is gone by then.
    if (has("late-create") && name !== id) await sleep(2000);
    const pidFile = join(bundle, "fake.pid");
    containers.set(name, {
      args: name === id ? ["sleep", "1000"] : args,
      stdin,
      stdout,
      stderr,
      pid: 0,
      status: Status.CREATED,
      exit: Promise.withResolvers(),
      code: 0,
      pidFile,
    });
    return { pid: has("wrong-pid") ? 1 : process.pid };
  },
  Exec: async ({ stdout, stderr }) => {
    if (!has("endless-exec")) throw Object.assign(new Error("it executes nothing"), { code: 12 });
    for (const path of [stdout, stderr]) if (path !== "") openSync(path, "r+");
    return {};
  },
  Start: async ({ id: name, execId }) => {
    if (execId !== "") return { pid: process.pid };
    await run(name, containerOf(name));
    return { pid: has("wrong-pid") ? 1 : containerOf(name).pid };
  },
  State: async ({ id: name }) => {
    if (has("state-hangs")) await forEver;
    const { status, pid, code } = containerOf(name);
    return {
      id: name,
      status,
      pid,
      exitStatus: code,
      ...(status === Status.STOPPED ? { exitedAt: timestampNow() } : {}),
    };
  },
  Wait: async ({ id: name, execId }) => {
    if (execId !== "") await forEver;
    if (has("no-wait") && name !== id) await forEver;
    if (has("wait-fails") && name !== id) throw new Error("cannot wait");
    return { exitStatus: await containerOf(name).exit.promise, exitedAt: timestampNow() };
  },
  Kill: async ({ id: name, execId, signal }) => {
    const { pid, status, exit } = containerOf(name);
    if (execId !== "") return {};
    if (has("kill-hangs")) await forEver;
    if (has("kill-refuses") && name !== id) throw new Error("it does not feel like it");
    if (has("dies-at-kill") && name !== id) process.exit(1);
    if (status === Status.CREATED) exit.resolve(137);
    else if (!has("kill-lies")) process.kill(-pid, signal);
    if (has("late-kill") && name !== id) await sleep(2000);
    return {};
  },
  Delete: async ({ id: name, execId }) => {
    if (execId !== "") return {};
    const { pid, code } = containerOf(name);
    containers.delete(name);
    return { pid, exitStatus: code, exitedAt: timestampNow() };
  },
  Stats: async (_request, socket, frame) => {
    if (has("garbage")) socket?.write(Buffer.alloc(4096, 0xab));
    if (has("huge"))
      socket?.write(
        encodeFrame({
          streamId: frame?.streamId ?? 0,
          type: MessageType.response,
          flags: 0,
          data: new Uint8Array(maxData + 1),
        }),
      );
    return {};
  },
  Shutdown: async () => {
    setTimeout(() => process.exit(0), 20);
    return {};
  },
};

const answer = async (frame: Frame, socket: Socket): Promise<MessageInitShape<typeof ResponseSchema>> => {
  const { service, method, payload } = fromBinary(RequestSchema, frame.data);
  const description = Task.methods.find(({ name }) => name === method);
  const serve = methods[method];
  if (has("deaf")) await forEver;
  if (service !== `containerd.task.v${version}.Task` || !description || !serve)
    return { status: { code: 12, message: `${service}/${method} is not served` } };
  try {
    const said = await serve(fromBinary(description.input, payload) as unknown as Asked, socket, frame);
    return { payload: toBinary(description.output, create(description.output, said)) };
  } catch (error) {
    const { message, code = 2 } = error as Error & { code?: number };
    return { status: { code: typeof code === "number" ? code : 2, message } };
  }
};

/** The same methods by gRPC's own library. */
const serveGrpc = async (): Promise<void> => {
  const server = new Server();
  const asIs = (bytes: Uint8Array) => Buffer.from(bytes);
  const entries = Task.methods.map((method) => {
    const path = `/containerd.task.v${version}.Task/${method.name}`;
    const codec = {
      ...{ requestSerialize: asIs, requestDeserialize: asIs },
      ...{ responseSerialize: asIs, responseDeserialize: asIs },
    };
    return [method.name, { path, requestStream: false, responseStream: false, ...codec }] as const;
  });
  const handlers = Task.methods.map(({ name, input, output }) => [
    name,
    async (call: ServerUnaryCall<Buffer, Buffer>, answered: sendUnaryData<Buffer>) => {
      if (has("deaf")) await forEver;
      try {
        if (call.metadata.get("containerd-namespace")[0] !== values.namespace)
          throw new Error("no namespace");
        const served = methods[name];
        if (!served) return answered({ code: 12, details: `${name} is not served` });
        const said = await served(fromBinary(input, call.request) as unknown as Asked);
        answered(null, asIs(toBinary(output, create(output, said))));
      } catch (error) {
        const { message, code = 2 } = error as Error & { code?: number };
        answered({ code: typeof code === "number" ? code : 2, details: message });
      }
    },
  ]);
  server.addService(Object.fromEntries(entries), Object.fromEntries(handlers));
  rmSync(address, { force: true });
  await promisify(server.bindAsync.bind(server))(
    `unix:${basename(address)}`,
    ServerCredentials.createInsecure(),
  );
};

/** Lines of all lengths. */
const floodLog = (): void =>
  pour(createWriteStream("log"), Buffer.from(`${"x".repeat(100_000)}\n${"y\n".repeat(30_000)}`), "log.taken");

const serve = (): void => {
  if (has("floods-log")) floodLog();
  const server = createServer((socket) => {
    const decode = frameDecoder();
    socket.on("error", () => socket.destroy());
    socket.on("data", (chunk: Buffer) => {
      for (const frame of decode(chunk))
        void answer(frame as Frame, socket).then((response) => {
          const data = toBinary(ResponseSchema, create(ResponseSchema, response));
          socket.write(encodeFrame({ streamId: frame.streamId, type: MessageType.response, flags: 0, data }));
        });
    });
  });
  rmSync(address, { force: true });
  // Relative: the bundle's path may be too long for a socket.
  server.listen(basename(address));
};

const deleteLeft = async (): Promise<void> => {
  if (has("delete-hangs")) await sleep(1e6);
  const pidFile = join(values.bundle ?? "", "fake.pid");
  if (existsSync(pidFile))
    try {
      process.kill(-Number(readFileSync(pidFile, "utf8")), "SIGKILL");
    } catch {
      // Gone already.
    }
  process.stdout.write(
    has("delete-garbage")
      ? Buffer.alloc(64, 0xff)
      : toBinary(DeleteResponseSchema, create(DeleteResponseSchema, { exitStatus: 137 })),
  );
};

try {
  switch (positionals.at(-1)) {
    case "start":
      await start();
      break;
    case "serve":
      if (has("grpc")) await serveGrpc();
      else serve();
      break;
    case "delete":
      await deleteLeft();
      break;
  }
} catch (error) {
  process.stderr.write(`${(error as Error).message}\n`);
  process.exit(1);
}
