// Payers with money on the local chain, and what the chain says of it.

import fs from 'node:fs';
import { createPublicClient, createWalletClient, defineChain, http, parseAbi } from 'viem';
import { generatePrivateKey, mnemonicToAccount, privateKeyToAccount } from 'viem/accounts';

const { rpc, addressBook } = JSON.parse(fs.readFileSync(process.env.COMPUTEPOOL_CHAIN, 'utf8'));
export const book = addressBook;
export const network = `eip155:${book.chainId}`;
/** Wei of USDCx in a unit of USDC. */
export const UNIT = 10n ** 12n;

const chain = defineChain({
  id: book.chainId,
  name: 'local',
  nativeCurrency: { name: '0G', symbol: '0G', decimals: 18 },
  rpcUrls: { default: { http: [rpc] } },
});
const transport = http(rpc);
export const reader = createPublicClient({ chain, transport, pollingInterval: 50 });

export const usdcAbi = parseAbi([
  'function mint(address to, uint256 amount)',
  'function balanceOf(address account) view returns (uint256)',
  'function cancelAuthorization(address authorizer, bytes32 nonce, uint8 v, bytes32 r, bytes32 s)',
]);
const poolAbi = parseAbi(['function getTotalAmountReceivedByMember(address member) view returns (uint256)']);
const vaultAbi = parseAbi(['function close()', 'function rate() view returns (int96)', 'function closed() view returns (bool)']);

// The chain's own development account: it mints and pays for gas.
const banker = createWalletClient({
  account: mnemonicToAccount('test test test test test test test test test test test junk'),
  chain,
  transport,
});

/** A new account with so many units of USDC, and gas. */
export async function payer(units) {
  const account = privateKeyToAccount(generatePrivateKey());
  const mint = { address: book.contracts.usdc, abi: usdcAbi, functionName: 'mint', args: [account.address, units] };
  for (const hash of [await banker.writeContract(mint), await banker.sendTransaction({ to: account.address, value: 10n ** 18n })]) {
    await reader.waitForTransactionReceipt({ hash });
  }
  return account;
}

export const usdcOf = (address) =>
  reader.readContract({ address: book.contracts.usdc, abi: usdcAbi, functionName: 'balanceOf', args: [address] });

/** Wei that an operator has received from a pool. */
export const receivedBy = (pool, member) =>
  reader.readContract({ address: pool, abi: poolAbi, functionName: 'getTotalAmountReceivedByMember', args: [member] });

export const rateOf = (vault) => reader.readContract({ address: vault, abi: vaultAbi, functionName: 'rate' });
export const isClosed = (vault) => reader.readContract({ address: vault, abi: vaultAbi, functionName: 'closed' });

/** The payer's own way out: no orchestrator. */
export async function closeDirectly(account, vault) {
  const wallet = createWalletClient({ account, chain, transport });
  const hash = await wallet.writeContract({ address: vault, abi: vaultAbi, functionName: 'close', gas: 1_300_000n });
  return reader.waitForTransactionReceipt({ hash });
}

/** A transaction of the payer's. */
export async function send(account, request) {
  const wallet = createWalletClient({ account, chain, transport });
  return reader.waitForTransactionReceipt({ hash: await wallet.writeContract(request) });
}
