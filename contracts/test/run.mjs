#!/usr/bin/env node
// Tests the contracts on a local node with the real Superfluid. contracts/test.sh runs it.
//   --update     write contracts/addresses/local.json and contracts/.gas-snapshot anew
//   --no-forge   only the deployment and test/transactions.mjs
// Further words go to forge. SOAK=1 runs many more random cases; SEED=<number> repeats a run.
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { createPublicClient, http, toHex } from "viem";
import { mnemonicToAccount } from "viem/accounts";
import { startAnvil } from "../deploy/anvil.mjs";
import { bookFile, bookText, deploy, networkConfiguration } from "../deploy/deploy.mjs";
import { contractsFolder, repository } from "../deploy/folders.mjs";
import { compile } from "../deploy/own-contracts.mjs";
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

function deployGalileo(rpc, book, key) {
  const words = [join(contractsFolder, "deploy", "deploy.mjs"), "--network", "galileo", "--rpc", rpc, "--book", book];
  const child = spawn("node", words, { env: { ...process.env, COMPUTEPOOL_DEPLOYER_KEY: key } });
  const said = { text: "" };
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (said.text += text));
  return { child, said, ended: once(child, "close").then(([status]) => ({ status, text: said.text })) };
}

/**
 * The public network's configuration, with gas estimates, on the same chain: killed in the middle, it goes on where it
 * stopped; it ends at other addresses than the local network's; and a key is never shown.
 */
async function checkInterruptedDeployment(rpc, local, mnemonic) {
  const folder = mkdtempSync(join(tmpdir(), "computepool-contracts-"));
  try {
    const book = join(folder, "galileo.json");
    const refused = await deployGalileo(rpc, book, "not-a-key-but-secret").ended;
    if (refused.status === 0 || refused.text.includes("secret")) throw new Error("deploy.mjs took what is no key, or showed it.");

    const account = mnemonicToAccount(mnemonic, { addressIndex: 9 });
    const key = toHex(account.getHdKey().privateKey);
    const client = createPublicClient({ transport: http(rpc), cacheTime: 0 });
    const { child, ended } = deployGalileo(rpc, book, key);
    while ((await client.getTransactionCount({ address: account.address })) < 9 && child.exitCode === null) await setTimeout(5);
    child.kill("SIGKILL");
    if ((await ended).status === 0 || existsSync(book)) throw new Error("The deployment was to be interrupted, and was not.");

    const resumed = await deployGalileo(rpc, book, key).ended;
    if (resumed.status !== 0) throw new Error(`An interrupted deployment did not go on: ${resumed.text}`);
    const again = await deployGalileo(rpc, book, key).ended;
    if (!again.text.startsWith("transactions 0,") || !again.text.includes("unchanged")) throw new Error(`It did not come to an end: ${again.text}`);
    if (again.text.includes(key.slice(2))) throw new Error("deploy.mjs showed the key.");
    const { contracts } = JSON.parse(readFileSync(book, "utf8"));
    const same = Object.keys(contracts).filter((name) => contracts[name] === local.contracts[name]);
    if (same.join() !== "erc1820Registry") throw new Error(`Two networks share addresses: ${same}`);
    summary.push(`deployment, killed and resumed: ${resumed.text.split("\n")[0]}`);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function main() {
  await forge(["fmt", "--check", "contracts"]);
  compile();
  const configuration = networkConfiguration("local");
  // As bare as a public chain can be: even the CREATE2 factory that all share is missing.
  const node = await startAnvil(["--chain-id", String(configuration.chainId), "--disable-default-create2-deployer"]);
  try {
    const book = await checkDeployment(node.rpc);
    await checkInterruptedDeployment(node.rpc, book, configuration.key.mnemonic);
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
