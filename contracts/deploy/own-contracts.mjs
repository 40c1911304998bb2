// Our own contracts, compiled by forge with npm's solc.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { contractsFolder, repository } from "./folders.mjs";

/** Apart from the tests' output: solc's code depends a little on what else is compiled, so it is always all of src and only that. */
const output = join(contractsFolder, "out", "deployed");
const keyFile = join(output, "key");
const PACKAGES = ["@foundry-rs/forge", "@openzeppelin/contracts", "solc"];

/** Hash of the files in some of our folders, and of the named packages' versions. */
export function hashOf(folders, files, packages) {
  const hash = createHash("sha256");
  const all = [...folders.flatMap((folder) => filesIn(join(contractsFolder, folder))), ...files.map((file) => join(contractsFolder, file))];
  for (const file of all.sort()) hash.update(`${relative(contractsFolder, file)}\0`).update(readFileSync(file)).update("\0");
  const lock = JSON.parse(readFileSync(join(repository, "package-lock.json"), "utf8"));
  for (const name of packages) hash.update(`${name} ${lock.packages[`node_modules/${name}`].integrity}\n`);
  return hash.digest("hex");
}

function filesIn(folder) {
  const entries = readdirSync(folder, { withFileTypes: true, recursive: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath ?? entry.path, entry.name));
}

/** Compiles unless it was done for these very sources. */
export function compile() {
  const key = hashOf(["src", "tools"], ["foundry.toml"], PACKAGES);
  if (existsSync(keyFile) && readFileSync(keyFile, "utf8") === key) return;
  const words = ["build", "--force", "--skip", "test", "--out", output, "--cache-path", join(contractsFolder, "out", "deployed-cache")];
  try {
    execFileSync(join(contractsFolder, "tools", "forge"), words, { encoding: "utf8", stdio: "pipe" });
  } catch (error) {
    throw new Error(`The contracts do not compile:\n${error.stdout ?? ""}${error.stderr ?? error.message}`);
  }
  writeFileSync(keyFile, key);
}

/** {abi, bytecode} of a contract in contracts/src. */
export function artifact(name) {
  const { abi, bytecode } = JSON.parse(readFileSync(join(output, `${name}.sol`, `${name}.json`), "utf8"));
  return { abi, bytecode: bytecode.object };
}
