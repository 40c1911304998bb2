#!/usr/bin/env node
// Tests the contracts on a local node with the real Superfluid. contracts/test.sh runs it.
//   --update     write contracts/addresses/local.json and contracts/.gas-snapshot anew
//   --no-forge   only the deployment and test/transactions.mjs
// Further words go to forge. SOAK=1 runs many more random cases; SEED=<number> repeats a run.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { randomBytes } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { startAnvil } from "../deploy/anvil.mjs";
import { bookFile, bookText, deploy, networkConfiguration } from "../deploy/deploy.mjs";
import { contractsFolder, repository } from "../deploy/folders.mjs";
import { checkTransactions } from "./transactions.mjs";

const started = Date.now();
const words = process.argv.slice(2);
const update = words.includes("--update");
const withForge = !words.includes("--no-forge");
const forgeWords = words.filter((word) => !["--update", "--no-forge"].includes(word));
const soak = process.env.SOAK === "1";
const seed = process.env.SEED ?? (soak ? String(randomBytes(4).readUInt32BE()) : "1");
const summary = [];

/** Not spawnSync: what the node prints must be read meanwhile, or it waits for us. */
async function forge(words, environment = {}) {
  const child = spawn(join(contractsFolder, "tools", "forge"), words, { stdio: "inherit", env: { ...process.env, ...environment } });
  const [status] = await once(child, "exit");
  if (status !== 0) throw new Error(`forge ${words[0]} failed`);
}

/** Deploys twice: the second time must send nothing and write the same. */
async function checkDeployment(rpc) {
  const configuration = networkConfiguration("local");
  const first = await deploy(configuration, rpc);
  const second = await deploy(configuration, rpc, first.book);
  if (second.chain.transactions !== 0) throw new Error(`A second deployment sent ${second.chain.transactions} transactions.`);
  if (bookText(first.book) !== bookText(second.book)) throw new Error("A second deployment wrote another address book.");
  const text = bookText(first.book);
  if (update) writeFileSync(bookFile("local"), text);
  else if (readFileSync(bookFile("local"), "utf8") !== text) throw new Error("contracts/addresses/local.json is not what these contracts deploy to. If this is meant: contracts/test.sh --update");
  const { transactions, gas, dearest } = first.chain;
  summary.push(`deployment: ${transactions} transactions, ${gas} gas, dearest ${dearest.what} ${dearest.gas}; the second run sent 0`);
  return first.book;
}

/** A key that is no key is refused without being shown. */
function checkKeyIsNotShown() {
  const secret = "not-a-key-but-secret";
  const words = [join(contractsFolder, "deploy", "deploy.mjs"), "--network", "galileo", "--rpc", "http://127.0.0.1:9"];
  const { status, stdout, stderr } = spawnSync("node", words, { encoding: "utf8", env: { ...process.env, COMPUTEPOOL_DEPLOYER_KEY: secret } });
  if (status === 0 || `${stdout}${stderr}`.includes(secret)) throw new Error("deploy.mjs showed a key, or took what is none.");
}

async function main() {
  await forge(["fmt", "--check", "contracts"]);
  await forge(["build"]);
  checkKeyIsNotShown();
  const configuration = networkConfiguration("local");
  const node = await startAnvil(["--chain-id", String(configuration.chainId)]);
  try {
    const book = await checkDeployment(node.rpc);
    if (withForge) {
      console.log(`seed ${seed}${soak ? ", soak" : ""}`);
      await forge(["test", "--fork-url", node.rpc, "--fuzz-seed", seed, ...forgeWords], soak ? { FOUNDRY_PROFILE: "soak" } : {});
      summary.push(`forge: all tests passed, seed ${seed}`);
    }
    if (forgeWords.length === 0) summary.push(...(await checkTransactions(node.rpc, book, configuration.key.mnemonic, { update })));
  } finally {
    await node.stop();
  }
  console.log(summary.map((line) => `contracts: ${line}`).join("\n"));
  console.log(`contracts: passed in ${Math.round((Date.now() - started) / 1000)} s`);
}

process.chdir(repository);
main().catch((error) => {
  console.error(`contracts: failed: ${error.shortMessage ?? error.message}`);
  process.exitCode = 1;
});
