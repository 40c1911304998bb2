// A local EVM node for as long as it is needed. It listens on loopback only and ends with this process.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { repository } from "./folders.mjs";

const START_LIMIT_MS = 20_000;
const STOP_LIMIT_MS = 5_000;

/** The native program, without npm's wrapper around it: a signal must reach the node itself. */
export function anvilProgram() {
  const architecture = { x64: "amd64", arm64: "arm64" }[process.arch];
  const program = join(repository, "node_modules", "@foundry-rs", `anvil-${process.platform}-${architecture}`, "bin", "anvil");
  if (!existsSync(program)) throw new Error("anvil is not installed: run npm ci in the repository's root.");
  return program;
}

/** Starts one and returns {rpc, stop} when it answers. `options` are further words of its command line. */
export async function startAnvil(options = []) {
  const node = spawn(anvilProgram(), ["--host", "127.0.0.1", "--port", "0", ...options], { stdio: ["ignore", "pipe", "pipe"] });
  const ended = new Promise((resolve) => node.once("exit", resolve));
  const kill = () => node.kill("SIGKILL");
  process.once("exit", kill);
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(signal, () => process.exit(1));

  let trouble = "";
  node.stderr.on("data", (text) => (trouble = (trouble + text).slice(-2_000)));
  const lines = createInterface({ input: node.stdout });
  const address = await new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("anvil did not start in time.")), START_LIMIT_MS);
    lines.on("line", (line) => {
      const found = line.match(/^Listening on (127\.0\.0\.1:\d+)$/);
      if (found) resolve(found[1]);
    });
    ended.then((code) => reject(new Error(`anvil ended with ${code}: ${trouble}`)));
    node.once("error", reject);
    node.once("spawn", () => ended.then(() => clearTimeout(timer)));
  }).catch((error) => {
    kill();
    throw error;
  });

  const stop = async () => {
    const timer = setTimeout(kill, STOP_LIMIT_MS);
    node.kill("SIGTERM");
    await ended;
    clearTimeout(timer);
    process.removeListener("exit", kill);
  };
  return { rpc: `http://${address}`, stop };
}
