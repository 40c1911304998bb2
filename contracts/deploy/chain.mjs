// One account on one chain: reads, and transactions that are waited for and held to the limits of public chains.
import { createPublicClient, defineChain, getAddress, http, keccak256 } from "viem";

/** EIP-7825: no transaction may have a higher gas limit. */
export const TRANSACTION_GAS_LIMIT = 16_777_216n;
/** EIP-170 and EIP-3860. */
const CODE_SIZE_LIMIT = 24_576;
const CREATION_CODE_SIZE_LIMIT = 49_152;

export class Chain {
  transactions = 0;
  gas = 0n;
  dearest = { gas: 0n, what: "nothing" };

  #account;
  #estimates;
  #nonce;

  constructor({ rpc, chainId, account, estimateGas }) {
    const chain = defineChain({
      id: chainId,
      name: "chain",
      nativeCurrency: { name: "coin", symbol: "COIN", decimals: 18 },
      rpcUrls: { default: { http: [rpc] } },
    });
    this.client = createPublicClient({ chain, transport: http(rpc, { timeout: 30_000 }), pollingInterval: 25, cacheTime: 0 });
    this.chainId = chainId;
    this.#account = account;
    this.#estimates = estimateGas;
  }

  get sender() {
    return this.#account.address;
  }

  async checkChainId() {
    const found = await this.client.getChainId();
    if (found !== this.chainId) throw new Error(`The node serves chain ${found}, not ${this.chainId}.`);
  }

  async hasCode(address) {
    return ((await this.client.getCode({ address })) ?? "0x") !== "0x";
  }

  async codeHash(address) {
    const code = (await this.client.getCode({ address })) ?? "0x";
    if (code === "0x") throw new Error(`There is no code at ${address}.`);
    const bytes = (code.length - 2) / 2;
    if (bytes > CODE_SIZE_LIMIT) throw new Error(`The code at ${address} has ${bytes} bytes; public chains allow ${CODE_SIZE_LIMIT}.`);
    return keccak256(code);
  }

  read(address, abi, functionName, args = []) {
    return this.client.readContract({ address, abi, functionName, args });
  }

  async storageAddress(address, slot) {
    return getAddress(`0x${(await this.client.getStorageAt({ address, slot })).slice(-40)}`);
  }

  checkCreationCode(what, code) {
    const bytes = (code.length - 2) / 2;
    if (bytes > CREATION_CODE_SIZE_LIMIT) throw new Error(`${what}: creation code of ${bytes} bytes; public chains allow ${CREATION_CODE_SIZE_LIMIT}.`);
  }

  /** Sends, waits for the receipt, and throws unless it succeeded. */
  async send(what, { to, data = "0x", value = 0n }) {
    this.#nonce ??= await this.client.getTransactionCount({ address: this.sender, blockTag: "pending" });
    const [fees, gas] = await Promise.all([this.#fees(), this.#gasLimit(what, { to, data, value })]);
    const signed = await this.#account.signTransaction({ ...fees, chainId: this.chainId, nonce: this.#nonce, to, data, value, gas });
    const receipt = await this.broadcast(what, signed);
    this.#nonce += 1;
    return receipt;
  }

  async broadcast(what, signed) {
    const hash = await this.client.sendRawTransaction({ serializedTransaction: signed });
    const receipt = await this.client.waitForTransactionReceipt({ hash, timeout: 180_000 });
    this.transactions += 1;
    this.gas += receipt.gasUsed;
    if (receipt.gasUsed > this.dearest.gas) this.dearest = { gas: receipt.gasUsed, what };
    if (receipt.status !== "success") throw new Error(`${what}: the transaction ${hash} failed.`);
    return receipt;
  }

  /** Room for the base fee to double. Chains without a base fee have one price. */
  async #fees() {
    const { baseFeePerGas } = await this.client.getBlock();
    if (baseFeePerGas === null || baseFeePerGas === undefined) return { type: "legacy", gasPrice: await this.client.getGasPrice() };
    const maxPriorityFeePerGas = await this.client.estimateMaxPriorityFeePerGas();
    return { type: "eip1559", maxFeePerGas: 2n * baseFeePerGas + maxPriorityFeePerGas, maxPriorityFeePerGas };
  }

  /** Superfluid's inner calls run out of gas at the exact estimate, so half is added; unused gas costs nothing. */
  async #gasLimit(what, { to, data, value }) {
    if (!this.#estimates) return TRANSACTION_GAS_LIMIT;
    const estimate = await this.client.estimateGas({ account: this.sender, to, data, value });
    if (estimate > TRANSACTION_GAS_LIMIT) throw new Error(`${what} needs ${estimate} gas; public chains allow ${TRANSACTION_GAS_LIMIT} a transaction.`);
    const generous = (estimate * 3n) / 2n;
    return generous < TRANSACTION_GAS_LIMIT ? generous : TRANSACTION_GAS_LIMIT;
  }
}
