// Contracts at addresses that follow from the network's salt and the code: through our owner-gated CREATE2 deployer,
// which itself is deployed through the factory that all chains share.
import { concat, encodeAbiParameters, encodeDeployData, encodeFunctionData, getContractAddress, keccak256, parseEther, stringToHex, zeroAddress } from "viem";
import { artifact } from "./own-contracts.mjs";

const SHARED_FACTORY = "0x4e59b44847b379578588920cA78FbF26c0B4956C";
/** Keyless transactions: anybody may fund the sender and broadcast them, and the contract is the same everywhere. */
const SHARED_FACTORY_TRANSACTION = {
  sender: "0x3fAB184622Dc19b6109349B94811493BF2a45362",
  value: parseEther("0.01"),
  signed:
    "0xf8a58085174876e800830186a08080b853604580600e600039806000f350fe7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe036016" +
    "00081602082378035828234f58015156039578182fd5b8082525050506014600cf31ba02222222222222222222222222222222222222222222222222222222222222222" +
    "a02222222222222222222222222222222222222222222222222222222222222222",
};

export const call = (target, abi, functionName, args = []) => ({ target, data: encodeFunctionData({ abi, functionName, args }) });
/** A call to the contract that is being deployed. */
export const callIt = (abi, functionName, args = []) => call(zeroAddress, abi, functionName, args);

export class Deployer {
  /** What is where: name -> address. */
  addresses = {};

  #chain;
  #salt;
  #own = artifact("DeterministicDeployer");

  constructor(chain, salt) {
    this.#chain = chain;
    this.#salt = salt;
  }

  /** Two contracts may have the same code (proxies), so the name is part of it. */
  #saltOf(name) {
    return keccak256(stringToHex(`${this.#salt}/${name}`));
  }

  /** Our CREATE2 deployer itself. */
  async start() {
    await this.keyless("sharedFactory", SHARED_FACTORY, SHARED_FACTORY_TRANSACTION);
    const code = encodeDeployData({ ...this.#own, args: [this.#chain.sender] });
    const salt = this.#saltOf("deterministicDeployer");
    const address = getContractAddress({ opcode: "CREATE2", from: SHARED_FACTORY, salt, bytecode: code });
    if (!(await this.#chain.hasCode(address))) {
      await this.#chain.send("deterministicDeployer", { to: SHARED_FACTORY, data: concat([salt, code]) });
    }
    await this.#record("deterministicDeployer", address);
  }

  /** A contract whose standard fixes the transaction that deploys it. */
  async keyless(name, address, { sender, value, signed }) {
    if (!(await this.#chain.hasCode(address))) {
      const missing = value - (await this.#chain.client.getBalance({ address: sender }));
      if (missing > 0n) await this.#chain.send(`${name}, its fee`, { to: sender, value: missing });
      await this.#chain.broadcast(name, signed);
    }
    await this.#record(name, address);
  }

  /** Deploys unless it is there, with the calls that set it up in the same transaction. */
  async contract(name, { abi, bytecode, linkReferences }, args = [], calls = () => []) {
    const linked = link(bytecode, linkReferences, this.addresses);
    const code = args.length > 0 ? concat([linked, encodeConstructor(abi, args)]) : linked;
    this.#chain.checkCreationCode(name, code);
    const from = this.addresses.deterministicDeployer;
    const salt = this.#saltOf(name);
    const address = getContractAddress({ opcode: "CREATE2", from, salt, bytecode: code });
    if (!(await this.#chain.hasCode(address))) {
      const data = encodeFunctionData({ abi: this.#own.abi, functionName: "deploy", args: [salt, code, calls(address)] });
      await this.#chain.send(name, { to: from, data });
    }
    return this.#record(name, address);
  }

  /** Calls made as the deployer. */
  async execute(what, calls) {
    const data = encodeFunctionData({ abi: this.#own.abi, functionName: "execute", args: [calls] });
    await this.#chain.send(what, { to: this.addresses.deterministicDeployer, data });
  }

  async #record(name, address) {
    if (!(await this.#chain.hasCode(address))) throw new Error(`${name} was deployed, but there is no code at ${address}.`);
    this.addresses[name] = address;
    return address;
  }
}

function encodeConstructor(abi, args) {
  return encodeAbiParameters(abi.find((item) => item.type === "constructor").inputs, args);
}

/** Puts the addresses of libraries into the code. The libraries are recorded under their names, first letter small. */
function link(bytecode, references = {}, addresses) {
  let linked = bytecode;
  for (const libraries of Object.values(references)) {
    for (const [library, places] of Object.entries(libraries)) {
      const address = addresses[library[0].toLowerCase() + library.slice(1)];
      if (!address) throw new Error(`The library ${library} must be deployed first.`);
      for (const { start, length } of places) {
        linked = linked.slice(0, 2 + start * 2) + address.slice(2).toLowerCase() + linked.slice(2 + (start + length) * 2);
      }
    }
  }
  return linked;
}
