#!/usr/bin/env node
// A chain with everything deployed and the development accounts funded, as a file that anvil loads in a moment:
//   anvil --chain-id 16602 --accounts 20 --load-state <out>/state.json
// A cache: made when missing, and the same for the same inputs. `--print-key` says what it depends on, as one hash.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { gunzipSync } from "node:zlib";
import { encodeFunctionData } from "viem";
import { mnemonicToAccount } from "viem/accounts";
import { startAnvil } from "./anvil.mjs";
import { bookText, deploy, networkConfiguration } from "./deploy.mjs";
import { cacheFolder } from "./folders.mjs";
import { artifact, compile, hashOf } from "./own-contracts.mjs";
import { superfluidPin } from "./superfluid-package.mjs";

const USAGE = "snapshot.mjs [--out <folder>] [--print-key]";
const ACCOUNTS = 20;
/** A million dollars each. */
const USDC_EACH = 1_000_000_000_000n;
const PACKAGES = ["@foundry-rs/anvil", "@foundry-rs/forge", "@openzeppelin/contracts", "solc", "viem"];

/** Hash of everything that the snapshot depends on. */
export function snapshotKey() {
  const sources = hashOf(["src", "tools", "deploy"], ["foundry.toml"], PACKAGES);
  return createHash("sha256").update(`${sources} ${superfluidPin}`).digest("hex").slice(0, 32);
}

async function make(folder) {
  const configuration = networkConfiguration("local");
  compile();
  const node = await startAnvil(["--chain-id", String(configuration.chainId), "--accounts", String(ACCOUNTS)]);
  try {
    const { book, chain } = await deploy(configuration, node.rpc);
    const { abi } = artifact("TestUsdc");
    for (let addressIndex = 0; addressIndex < ACCOUNTS; addressIndex += 1) {
      const { address } = mnemonicToAccount(configuration.key.mnemonic, { addressIndex });
      const data = encodeFunctionData({ abi, functionName: "mint", args: [address, USDC_EACH] });
      await chain.send(`USDC for account ${addressIndex}`, { to: book.contracts.usdc, data });
    }
    const dump = await chain.client.request({ method: "anvil_dumpState", params: [] });
    writeFileSync(join(folder, "state.json"), gunzipSync(Buffer.from(dump.slice(2), "hex")));
    writeFileSync(join(folder, "addresses.json"), bookText(book));
  } finally {
    await node.stop();
  }
}

async function main() {
  const { values } = parseArgs({ options: { out: { type: "string" }, "print-key": { type: "boolean" } } });
  const key = snapshotKey();
  if (values["print-key"]) {
    console.log(key);
    return;
  }
  const out = resolve(values.out ?? join(cacheFolder(), "snapshots", key));
  const keyFile = join(out, "key");
  if (existsSync(keyFile) && readFileSync(keyFile, "utf8").trim() === key) {
    console.log(out);
    return;
  }
  // Made beside it and moved into place: whoever finds the folder finds all of it, and of two makers one wins.
  mkdirSync(dirname(out), { recursive: true });
  const work = mkdtempSync(join(dirname(out), `.${basename(out)}-`));
  try {
    await make(work);
    writeFileSync(join(work, "key"), `${key}\n`);
    if (existsSync(out)) {
      if (!existsSync(keyFile)) throw new Error(`${out} exists and is not a snapshot; it is left alone.`);
      rmSync(out, { recursive: true });
    }
    try {
      renameSync(work, out);
    } catch (error) {
      if (!existsSync(keyFile)) throw error;
    }
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  console.log(out);
}

main().catch((error) => {
  console.error(error.shortMessage ?? error.message);
  console.error(`Usage: ${USAGE}`);
  process.exitCode = 1;
});
