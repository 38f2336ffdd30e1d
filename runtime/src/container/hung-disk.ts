import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync } from "node:fs";

/** For tests: a file system whose server (FUSE) never answers, as a network disk whose server is gone. */
export const hungDisk = async (at: string): Promise<AsyncDisposable> => {
  mkdirSync(at);
  const options = "fd=3,rootmode=40000,user_id=0,group_id=0";
  const server = spawn(
    "bash",
    ["-c", `exec 3<>/dev/fuse; mount -i -t fuse -o ${options} hung "$1" && echo up; exec sleep 300`, "-", at],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  const exited = once(server, "exit");
  await Promise.race([once(server.stdout, "data"), exited]);
  return {
    async [Symbol.asyncDispose]() {
      // Without its server each call into it ends.
      server.kill("SIGKILL");
      await exited;
      execFileSync("umount", ["-l", at]);
    },
  };
};
