// Our own contracts, compiled by forge with npm's solc.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { contractsFolder } from "./folders.mjs";

export function compile() {
  try {
    execFileSync(join(contractsFolder, "tools", "forge"), ["build", "--skip", "test"], { encoding: "utf8", stdio: "pipe" });
  } catch (error) {
    throw new Error(`The contracts do not compile:\n${error.stdout ?? ""}${error.stderr ?? error.message}`);
  }
}

/** {abi, bytecode} of a contract in contracts/src. */
export function artifact(name) {
  const { abi, bytecode } = JSON.parse(readFileSync(join(contractsFolder, "out", `${name}.sol`, `${name}.json`), "utf8"));
  return { abi, bytecode: bytecode.object };
}
