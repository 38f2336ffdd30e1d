import type { Duplex } from "node:stream";
import type { AttachSession, ExecProcess, ExecRequest } from "../handler/handler.ts";

/**
 * Exec, Attach and PortForward for kubectl and crictl: an HTTP server that speaks SPDY/3.1
 * (v4.channel.k8s.io and older; portforward.k8s.io) and WebSocket (v5 and v4; SPDY over WebSocket for port-forward).
 */
export interface StreamingServer {
  /** Single-use URL, valid for a minute. */
  execUrl(request: StreamRequest): string;
  attachUrl(request: StreamRequest): string;
  portForwardUrl(request: { podId: string; ports: number[] }): string;
  close(): Promise<void>;
}

export type StreamRequest = {
  containerId: string;
  /** Exec only. */
  cmd?: string[];
  tty: boolean;
  stdin: boolean;
  stdout: boolean;
  stderr: boolean;
};

/** What the server runs requests against; made by the CRI layer. Errors are RuntimeErrors. */
export interface StreamingBackend {
  exec(
    containerId: string,
    cmd: string[],
    io: Pick<ExecRequest, "stdin" | "stdout" | "stderr" | "tty">,
    signal: AbortSignal,
  ): Promise<ExecProcess>;
  attach(containerId: string, signal: AbortSignal): Promise<AttachSession>;
  portForward(podId: string, port: number, signal: AbortSignal): Promise<Duplex>;
}
