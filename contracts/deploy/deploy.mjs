#!/usr/bin/env node
// Puts Superfluid and our contracts on a chain, checks what is there, and writes the network's address book.
// Idempotent: what exists is left alone, an interrupted run goes on where it stopped, a second run sends nothing.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { mnemonicToAccount, privateKeyToAccount } from "viem/accounts";
import { Chain, TRANSACTION_GAS_LIMIT } from "./chain.mjs";
import { Deployer } from "./deployer.mjs";
import { contractsFolder } from "./folders.mjs";
import { artifact, compile } from "./own-contracts.mjs";
import { deploySuperfluid, deployUsdcx, handOverGovernance, superfluidFacts } from "./superfluid.mjs";
import { SuperfluidPackage } from "./superfluid-package.mjs";

const USAGE = "deploy.mjs --network <name> --rpc <url> [--book <file>]";
/** Deployed on the way, of no use to anybody who calls. */
const NOT_IN_THE_BOOK = ["sharedFactory", "poolStandIn"];

export const bookFile = (network) => join(contractsFolder, "addresses", `${network}.json`);

export function networkConfiguration(network) {
  const file = join(contractsFolder, "deploy", "networks", `${network}.json`);
  if (!/^[a-z0-9-]+$/.test(network) || !existsSync(file)) throw new Error(`No configuration for the network ${network} in contracts/deploy/networks.`);
  const configuration = JSON.parse(readFileSync(file, "utf8"));
  if (configuration.network !== network) throw new Error(`${file} calls itself ${configuration.network}.`);
  return { ...configuration, minimumDeposit: BigInt(configuration.minimumDeposit) };
}

/** Returns {book, chain}: the address book as it should be written, and what was sent. */
export async function deploy(configuration, rpc, known) {
  const account = accountOf(configuration);
  const chain = new Chain({ ...configuration, rpc, account });
  await chain.checkChainId();
  const startBlock = known?.startBlock ?? Number(await chain.client.getBlockNumber());
  const terms = { ...configuration, account: account.address };
  const superfluid = new SuperfluidPackage();
  const deployer = new Deployer(chain, configuration.salt);
  const at = deployer.addresses;

  await deployer.start();
  await deploySuperfluid(deployer, superfluid, terms);
  await deployer.contract("usdc", artifact("TestUsdc"));
  await deployUsdcx(deployer, superfluid);
  await deployer.contract("sessionVaultFactory", artifact("SessionVaultFactory"), [at.usdc, at.usdcx, at.host, at.gda, BigInt(configuration.guard)]);
  at.sessionVaultImplementation = await chain.read(at.sessionVaultFactory, artifact("SessionVaultFactory").abi, "implementation");
  await deployer.contract("coalitionRegistry", artifact("CoalitionRegistry"), [at.host, at.gda, at.usdcx]);
  await handOverGovernance(deployer, chain, superfluid, terms);

  await checkFacts([...(await superfluidFacts(at, chain, superfluid, terms)), ...(await ownFacts(at, chain, configuration))]);
  const contracts = Object.fromEntries(Object.entries(at).filter(([name]) => !NOT_IN_THE_BOOK.includes(name)).sort());
  const codeHashes = {};
  for (const [name, address] of Object.entries(contracts)) codeHashes[name] = await chain.codeHash(address);
  checkKnown(known, contracts, codeHashes);
  const { network, chainId, liquidationPeriod, patricianPeriod, minimumDeposit, guard } = configuration;
  const usdcDomain = { name: "USD Coin", version: "1" };
  const book = { network, chainId, startBlock, liquidationPeriod, patricianPeriod, minimumDeposit: String(minimumDeposit), guard, usdcDomain, contracts, codeHashes };
  return { book, chain };
}

function accountOf({ key }) {
  if (key.mnemonic) return mnemonicToAccount(key.mnemonic);
  const secret = process.env[key.variable];
  if (!secret) throw new Error(`Put the deployer's private key into the environment variable ${key.variable}.`);
  try {
    return privateKeyToAccount(secret.startsWith("0x") ? secret : `0x${secret}`);
  } catch {
    // The library's message would contain the key.
    throw new Error(`${key.variable} is not a private key: 32 bytes in hexadecimal are wanted.`);
  }
}

async function ownFacts(at, chain, { guard }) {
  const facts = [["vault's guard", await chain.read(at.sessionVaultImplementation, artifact("SessionVault").abi, "guard"), BigInt(guard)]];
  const wired = { SessionVault: ["sessionVaultImplementation", ["usdc", "usdcx", "host", "gda"]], CoalitionRegistry: ["coalitionRegistry", ["usdcx", "host", "gda"]] };
  for (const [contract, [name, parts]] of Object.entries(wired)) {
    for (const part of parts) facts.push([`${name}'s ${part}`, await chain.read(at[name], artifact(contract).abi, part), at[part]]);
  }
  return facts;
}

function checkFacts(facts) {
  const wrong = facts.filter(([, found, wanted]) => found !== wanted);
  if (wrong.length > 0) throw new Error(wrong.map(([what, found, wanted]) => `${what}: ${found} instead of ${wanted}`).join("\n"));
}

/** A contract that stands where the book says must have the code that the book says. */
function checkKnown(known, contracts, codeHashes) {
  for (const [name, address] of Object.entries(known?.contracts ?? {})) {
    if (contracts[name] === address && codeHashes[name] !== known.codeHashes[name]) {
      throw new Error(`${name} at ${address} has other code than the address book says: ${codeHashes[name]}.`);
    }
  }
}

export const bookText = (book) => `${JSON.stringify(book, null, 2)}\n`;

async function main() {
  const { values } = parseArgs({ options: { network: { type: "string" }, rpc: { type: "string" }, book: { type: "string" } } });
  if (!values.network || !values.rpc) throw new Error(`Usage: ${USAGE}`);
  const configuration = networkConfiguration(values.network);
  const file = values.book ?? bookFile(values.network);
  const known = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : undefined;
  compile();
  const { book, chain } = await deploy(configuration, values.rpc, known);
  const changed = known === undefined || bookText(known) !== bookText(book);
  if (changed) {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, bookText(book));
  }
  console.log(`transactions ${chain.transactions}, gas ${chain.gas}, dearest ${chain.dearest.what} with ${chain.dearest.gas} of ${TRANSACTION_GAS_LIMIT}`);
  console.log(`contracts ${Object.keys(book.contracts).length}, each checked; address book ${changed ? "written" : "unchanged"}: ${file}`);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  main().catch((error) => {
    console.error(error.shortMessage ?? error.message);
    process.exitCode = 1;
  });
}
