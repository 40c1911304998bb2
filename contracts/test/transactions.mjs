// Real transactions on a real node, signed by viem: what the calls cost, that the fixed gas limits carry them also
// when strangers make them dearer, and that a client which shares no code with the contracts gets the same digests
// and addresses. forge's tests cannot see intrinsic gas, gas estimates, or a second implementation of EIP-712.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { concat, createPublicClient, encodeAbiParameters, encodeFunctionData, getContractAddress, hashTypedData, http, keccak256, pad, parseSignature, size, stringToHex, toHex, zeroHash } from "viem";
import { mnemonicToAccount, privateKeyToAccount } from "viem/accounts";
import { contractsFolder } from "../deploy/folders.mjs";
import { artifact } from "../deploy/own-contracts.mjs";
import { SuperfluidPackage } from "../deploy/superfluid-package.mjs";

const UNIT = 10n ** 12n;
const RATE = 100n * UNIT;
const TOLERANCE = 0.01;
const snapshotFile = join(contractsFolder, ".gas-snapshot");
export const gasLimits = JSON.parse(readFileSync(join(contractsFolder, "gas-limits.json"), "utf8"));

const field = (text) => text.split(",").map((pair) => { const [type, name] = pair.split(" "); return { type, name }; });
const proposalTypes = {
  Proposal: field("bytes32 poolId,uint64 epoch,bytes32 manifest,address orchestrator,Member[] members,Swap[] swaps,int96 rate,uint64 expiry"),
  Member: field("address operator,uint32 firstLayer,uint32 endLayer,uint32 units"),
  Swap: field("uint32 place,address standby"),
};
const registrationTypes = { Registration: field("address operator,uint64 deadline") };
const transferTypes = { TransferWithAuthorization: field("address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce") };

class Bench {
  measured = new Map();
  #count = 0;

  constructor(rpc, book, mnemonic) {
    this.client = createPublicClient({ transport: http(rpc), pollingInterval: 10, cacheTime: 0 });
    this.book = book;
    [this.deployer, this.orchestrator, this.payer, this.stranger] = [0, 1, 2, 3].map((addressIndex) => mnemonicToAccount(mnemonic, { addressIndex }));
    const abis = { usdc: "TestUsdc", sessionVaultFactory: "SessionVaultFactory", coalitionRegistry: "CoalitionRegistry" };
    const superfluid = new SuperfluidPackage();
    const foreign = { usdcx: "superfluid/SuperToken.sol", host: "superfluid/Superfluid.sol", gda: "agreements/gdav1/GeneralDistributionAgreementV1.sol", gdaForwarder: "utils/GDAv1Forwarder.sol", cfaForwarder: "utils/CFAv1Forwarder.sol" };
    for (const [name, contract] of Object.entries(abis)) this[name] = { address: book.contracts[name], abi: artifact(contract).abi };
    for (const [name, file] of Object.entries(foreign)) this[name] = { address: book.contracts[name], abi: superfluid.artifact(file).abi };
    this.poolAbi = superfluid.artifact("agreements/gdav1/SuperfluidPool.sol").abi;
    this.vaultAbi = artifact("SessionVault").abi;
  }

  id(what = "id") {
    return keccak256(stringToHex(`${what} ${(this.#count += 1)}`));
  }

  read(contract, functionName, ...args) {
    return this.client.readContract({ ...contract, functionName, args });
  }

  async now() {
    return (await this.client.getBlock()).timestamp;
  }

  /** Sends with the given gas limit, ten seconds after the block before. */
  async send(account, contract, functionName, args, { gas = 10_000_000, mayFail = false } = {}) {
    await this.client.request({ method: "evm_setNextBlockTimestamp", params: [Number(await this.now()) + 10] });
    const data = encodeFunctionData({ abi: contract.abi, functionName, args });
    const nonce = await this.client.getTransactionCount({ address: account.address });
    const { baseFeePerGas } = await this.client.getBlock();
    const signed = await account.signTransaction({ chainId: this.book.chainId, type: "eip1559", to: contract.address, data, nonce, gas: BigInt(gas), maxFeePerGas: 2n * baseFeePerGas + 1n, maxPriorityFeePerGas: 1n });
    const hash = await this.client.sendRawTransaction({ serializedTransaction: signed });
    const receipt = await this.client.waitForTransactionReceipt({ hash });
    if (!mayFail) assert.equal(receipt.status, "success", `${functionName} failed with a limit of ${gas} gas and used ${receipt.gasUsed}`);
    return receipt;
  }

  /** The same under its fixed limit, and noted in the table as `what`, the dearest of several. */
  async measure(what, limit, account, contract, functionName, ...args) {
    const receipt = await this.send(account, contract, functionName, args, { gas: limit });
    const used = Math.max(Number(receipt.gasUsed), this.measured.get(what)?.used ?? 0);
    this.measured.set(what, { used, limit });
    return receipt;
  }

  // ---- coalitions ----

  get domain() {
    return { name: "ComputePool", version: "1", chainId: this.book.chainId, verifyingContract: this.coalitionRegistry.address };
  }

  async operators(count) {
    const accounts = Array.from({ length: count }, () => privateKeyToAccount(this.id("operator")));
    const deadline = (await this.now()) + 100_000n;
    for (const account of accounts) {
      const message = { operator: account.address, deadline };
      const signature = await account.signTypedData({ domain: this.domain, types: registrationTypes, primaryType: "Registration", message });
      await this.measure("registerFor", gasLimits.registerFor, this.orchestrator, this.coalitionRegistry, "registerFor", account.address, deadline, signature);
    }
    return accounts;
  }

  async createPool() {
    const label = this.id("label");
    await this.measure("createPool", gasLimits.createPool, this.orchestrator, this.coalitionRegistry, "createPool", this.orchestrator.address, label);
    const poolId = await this.read(this.coalitionRegistry, "poolIdOf", this.orchestrator.address, label);
    return { poolId, gdaPool: await this.read(this.coalitionRegistry, "gdaPoolOf", poolId) };
  }

  async proposal(poolId, members, { standbys = [], shift = 0 } = {}) {
    const { epoch } = await this.read(this.coalitionRegistry, "coalitionOf", poolId);
    const share = Math.floor(1_000_000 / members.length);
    const units = members.map((_, i) => share + (i === 0 ? 1_000_000 - share * members.length - shift : 0) + (i === members.length - 1 ? shift : 0));
    return {
      poolId, epoch: epoch + 1n, manifest: this.id("manifest"), orchestrator: this.orchestrator.address,
      members: members.map(({ address }, i) => ({ operator: address, firstLayer: i, endLayer: i + 1, units: units[i] })),
      swaps: standbys.map(({ address }, i) => ({ place: i, standby: address })),
      rate: 10n * RATE, expiry: (await this.now()) + 1_000_000n,
    };
  }

  async activate(what, proposal, people) {
    const typed = { domain: this.domain, types: proposalTypes, primaryType: "Proposal", message: proposal };
    assert.equal(hashTypedData(typed), await this.read(this.coalitionRegistry, "proposalDigest", proposal), "viem and the contract hash a proposal alike");
    const keys = new Map([this.orchestrator, ...people].map((account) => [account.address, account]));
    const signers = await this.read(this.coalitionRegistry, "signersOf", proposal);
    const signatures = await Promise.all(signers.map((address) => keys.get(address).signTypedData(typed)));
    await this.measure(what, activationLimit(proposal, signers), this.orchestrator, this.coalitionRegistry, "activate", proposal, signatures);
  }

  // ---- sessions ----

  async terms(pool) {
    return { payer: this.payer.address, orchestrator: this.orchestrator.address, pool, maxRate: 10n * RATE, expiry: (await this.now()) + 100_000n, session: this.id("session") };
  }

  async voucher(to, value) {
    const validBefore = (await this.now()) + 10_000n;
    const message = { from: this.payer.address, to, value, validAfter: 0n, validBefore, nonce: this.id("nonce") };
    const domain = { ...this.book.usdcDomain, chainId: this.book.chainId, verifyingContract: this.usdc.address };
    const { r, s, v } = parseSignature(await this.payer.signTypedData({ domain, types: transferTypes, primaryType: "TransferWithAuthorization", message }));
    return { value, validAfter: 0n, validBefore, nonce: message.nonce, v: Number(v), r, s };
  }

  async vault(terms) {
    const address = await this.read(this.sessionVaultFactory, "vaultOf", terms);
    assert.equal(address, predictVault(this.book, terms), "a client without the factory predicts the same vault");
    return { address, abi: this.vaultAbi };
  }

  async open(what, pool, rate = 0n) {
    const terms = await this.terms(pool);
    const vault = await this.vault(terms);
    const limit = rate > 0n ? gasLimits.openAndStart : gasLimits.open;
    await this.measure(what, limit, this.orchestrator, this.sessionVaultFactory, "open", terms, await this.voucher(vault.address, 5_000_000n), rate);
    return vault;
  }

  setRate(what, vault, rate) {
    return this.measure(what, rate > 0n ? gasLimits.start : gasLimits.stop, this.orchestrator, vault, "setRate", rate);
  }

  close(what, vault) {
    return this.measure(what, gasLimits.close, this.payer, vault, "close");
  }
}

export const activationLimit = ({ members }, signers) => gasLimits.activate.base + gasLimits.activate.perMember * members.length + gasLimits.activate.perSigner * signers.length;

/** As interfaces/ISessionVault.sol describes it. */
function predictVault({ contracts }, terms) {
  const words = field("address payer,address orchestrator,address pool,int96 maxRate,uint64 expiry,bytes32 session");
  const args = encodeAbiParameters(words, words.map(({ name }) => terms[name]));
  const bytecode = concat(["0x61", pad(toHex(size(args) + 0x2d), { size: 2 }), "0x3d81600a3d39f3363d3d373d3d3d363d73", contracts.sessionVaultImplementation, "0x5af43d82803e903d91602b57fd5bf3", args]);
  return getContractAddress({ opcode: "CREATE2", from: contracts.sessionVaultFactory, salt: zeroHash, bytecode });
}

/** Everything once, on a chain that `deploy` has prepared. Returns the lines of a summary. */
export async function checkTransactions(rpc, book, mnemonic, { update = false } = {}) {
  const bench = new Bench(rpc, book, mnemonic);
  for (const account of [bench.payer, bench.stranger]) await bench.send(account, bench.usdc, "mint", [account.address, 10n ** 12n]);
  const pool = await coalitions(bench);
  await sessions(bench, pool);
  await griefed(bench, pool);
  await estimates(bench, pool);
  return report(bench.measured, update);
}

async function coalitions(bench) {
  const people = await bench.operators(37);
  for (const count of [1, 4, 16]) {
    const { poolId } = await bench.createPool();
    await bench.activate(`activate, ${count} new`, await bench.proposal(poolId, people.slice(0, count)), people);
  }
  const { poolId, gdaPool } = await bench.createPool();
  const [a, b, c, d, standby] = people.slice(32);
  await bench.activate("activate, 4 new, 1 standby", await bench.proposal(poolId, [a, b, c, d], { standbys: [standby] }), people);
  const vault = await bench.open("open", gdaPool);
  await bench.setRate("start, first", vault, RATE);
  await bench.measure("swap", gasLimits.swap, bench.orchestrator, bench.coalitionRegistry, "swap", poolId, 1n, 0n);
  await bench.activate("activate, 4 new weights while streaming", await bench.proposal(poolId, [standby, b, c, d], { shift: 7 }), people);
  await bench.measure("payOut", gasLimits.payOut, ...(await gift(bench)), poolId);
  await bench.measure("drain", gasLimits.drain, bench.orchestrator, bench.coalitionRegistry, "drain", poolId, 2n);
  await bench.client.request({ method: "evm_increaseTime", params: [300] });
  await bench.client.request({ method: "evm_mine", params: [] });
  await bench.measure("dissolve", gasLimits.dissolve, bench.stranger, bench.coalitionRegistry, "dissolve", poolId, 2n);
  await bench.close("close, streaming", vault);

  const wide = await bench.createPool();
  await bench.activate("activate, 16 new", await bench.proposal(wide.poolId, people.slice(0, 16)), people);
  const started = await bench.open("open and start", wide.gdaPool, RATE);
  await bench.activate("activate, all 16 replaced while streaming", await bench.proposal(wide.poolId, people.slice(16, 32)), people);
  assert.equal(await bench.read({ address: wide.gdaPool, abi: bench.poolAbi }, "getTotalFlowRate"), RATE, "the stream is whole");
  await bench.close("close, streaming", started);

  await bench.activate("activate, 4 of whom 1 returns", await bench.proposal(poolId, [a, b, c, d]), people);
  return { address: gdaPool, abi: bench.poolAbi, member: a.address };
}

async function gift(bench) {
  await bench.send(bench.stranger, bench.usdc, "approve", [bench.usdcx.address, 10n ** 12n]);
  await bench.send(bench.stranger, bench.usdcx, "upgrade", [10n ** 20n]);
  await bench.send(bench.stranger, bench.usdcx, "transfer", [bench.coalitionRegistry.address, 10n ** 16n]);
  return [bench.stranger, bench.coalitionRegistry, "payOut"];
}

async function sessions(bench, pool) {
  const vault = await bench.open("open", pool.address);
  await bench.setRate("start, first", vault, RATE);
  await bench.setRate("change of rate", vault, RATE / 2n);
  await bench.setRate("same rate again", vault, RATE / 2n);
  await bench.setRate("stop", vault, 0n);
  await bench.setRate("stop, stopped already", vault, 0n);
  await bench.setRate("start, again", vault, RATE);
  await bench.close("close, streaming", vault);
  await bench.close("close, idle", await bench.open("open", pool.address));
  await bench.close("close, streaming", await bench.open("open and start", pool.address, RATE));
  await bench.measure("claimAll", gasLimits.claimAll, bench.stranger, pool, "claimAll", pool.member);

  const terms = await bench.terms(pool.address);
  const late = await bench.vault(terms);
  await bench.measure("deploy", gasLimits.deploy, bench.stranger, bench.sessionVaultFactory, "deploy", terms);
  await bench.send(bench.payer, bench.usdc, "transfer", [late.address, 1_000_000n]);
  await bench.measure("fund", gasLimits.fund, bench.stranger, late, "fund");
  await bench.close("close, idle", late);
  await bench.send(bench.payer, bench.usdc, "transfer", [late.address, 5n]);
  await bench.measure("refund", gasLimits.refund, bench.stranger, late, "refund");
}

/** Strangers connect the vault to as many pools as Superfluid lets them, and stream to it. */
async function griefed(bench, pool) {
  const vault = await bench.open("open", pool.address);
  for (let i = 0; i < 4; i += 1) {
    const config = { transferabilityForUnitsOwner: false, distributionFromAnyAddress: true };
    const { result: trap } = await bench.client.simulateContract({ ...bench.gda, functionName: "createPool", args: [bench.usdcx.address, bench.stranger.address, config], account: bench.stranger });
    await bench.send(bench.stranger, bench.gda, "createPool", [bench.usdcx.address, bench.stranger.address, config]);
    await bench.send(bench.stranger, { address: trap, abi: bench.poolAbi }, "updateMemberUnits", [vault.address, 10n]);
    const connect = encodeFunctionData({ abi: bench.gda.abi, functionName: "tryConnectPoolFor", args: [trap, vault.address, "0x"] });
    await bench.send(bench.stranger, bench.host, "callAgreement", [bench.gda.address, connect, "0x"]);
    assert(await bench.read(bench.gda, "isMemberConnected", trap, vault.address), "the trap is set");
    await bench.send(bench.stranger, bench.gdaForwarder, "distributeFlow", [bench.usdcx.address, bench.stranger.address, trap, UNIT, "0x"]);
  }
  await bench.send(bench.stranger, bench.cfaForwarder, "setFlowrate", [bench.usdcx.address, vault.address, UNIT]);
  await bench.setRate("start, first, dearest", vault, RATE);
  await bench.setRate("stop, dearest", vault, 0n);
  await bench.setRate("start, again, dearest", vault, RATE);
  await bench.close("close, streaming, dearest", vault);
  assert(await bench.read(vault, "closed"), "closed");
  assert.equal(await bench.read(bench.usdc, "balanceOf", vault.address), 0n, "and refunded within the limit");
}

/** A wallet that trusts eth_estimateGas closes with a refund, or not at all. */
async function estimates(bench, pool) {
  const vault = await bench.open("open and start", pool.address, RATE);
  const data = encodeFunctionData({ abi: vault.abi, functionName: "close" });
  const gas = await bench.client.estimateGas({ account: bench.payer.address, to: vault.address, data });
  const before = await bench.read(bench.usdc, "balanceOf", bench.payer.address);
  await bench.send(bench.payer, vault, "close", [], { gas });
  const refunded = (await bench.read(bench.usdc, "balanceOf", bench.payer.address)) - before;
  assert(refunded > 4_900_000n, `closed with the estimate of ${gas} gas, and refunded ${refunded} units`);
}

function report(measured, update) {
  const lines = [...measured].map(([what, { used, limit }]) => `${what.padEnd(42)} ${String(used).padStart(9)} ${String(limit).padStart(9)}`).sort();
  const text = `${"call".padEnd(42)} ${"gas".padStart(9)} ${"limit".padStart(9)}\n${lines.join("\n")}\n`;
  if (update) {
    writeFileSync(snapshotFile, text);
    return [`gas: ${measured.size} calls, snapshot written`];
  }
  const known = new Map(readFileSync(snapshotFile, "utf8").split("\n").slice(1).filter(Boolean).map((line) => [line.slice(0, 42).trimEnd(), Number(line.slice(42, 52))]));
  const problems = [];
  for (const [what, { used }] of measured) {
    const was = known.get(what);
    if (was === undefined) problems.push(`${what} is not in the snapshot`);
    else if (Math.abs(used - was) > was * TOLERANCE) problems.push(`${what} used ${used} gas, ${was} in the snapshot`);
  }
  for (const what of known.keys()) if (!measured.has(what)) problems.push(`${what} is in the snapshot and was not measured`);
  if (problems.length > 0) throw new Error(`${problems.join("\n")}\nIf this is meant: contracts/test.sh --update`);
  return [`gas: ${measured.size} calls within their limits and within ${TOLERANCE * 100} % of the snapshot`];
}
