// The official clients pay and chat, end to end: @x402/fetch opens sessions, openai asks.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { x402Client } from '@x402/core/client';
import { ExactEvmScheme } from '@x402/evm/exact/client';
import { wrapFetchWithPayment } from '@x402/fetch';
import OpenAI from 'openai';
import { parseSignature } from 'viem';
import {
  UNIT, book, closeDirectly, isClosed, network, payer, rateOf, receivedBy, send, usdcAbi, usdcOf,
} from './wallet.mjs';

const api = process.env.COMPUTEPOOL_URL;
const MODEL = 'tiny';
const QUESTION = [{ role: 'user', content: 'What is a shard?' }];

function paying(account) {
  const schemes = [{ network, client: new ExactEvmScheme(account) }];
  const allowedAssets = [{ network, asset: book.contracts.usdc, maxAmountPerPayment: '5000000' }];
  return wrapFetchWithPayment(fetch, x402Client.fromConfig({ schemes, spendControls: { allowedAssets } }));
}

const json = { 'content-type': 'application/json' };
const wish = (account, seconds = 60) => ({
  method: 'POST',
  headers: json,
  body: JSON.stringify({ model: MODEL, payer: account.address, seconds }),
});

async function open(account, seconds) {
  const response = await paying(account)(`${api}/sessions`, wish(account, seconds));
  const session = await response.json();
  assert.equal(response.status, 201, JSON.stringify(session));
  return { session, settlement: JSON.parse(Buffer.from(response.headers.get('payment-response'), 'base64')) };
}

const bearer = (session) => ({ headers: { authorization: `Bearer ${session.token}` } });
const show = async (session) => (await fetch(`${api}/sessions/${session.id}`, bearer(session))).json();
const close = async (session) =>
  (await fetch(`${api}/sessions/${session.id}`, { method: 'DELETE', ...bearer(session) })).json();
const ask = (session) => new OpenAI({ baseURL: api, apiKey: session.token, maxRetries: 0 });

async function until(what, check, seconds = 20) {
  const begun = Date.now();
  for (;;) {
    const found = await check();
    if (found) return found;
    assert.ok(Date.now() - begun < seconds * 1000, `within ${seconds} s: ${what}`);
    await sleep(50);
  }
}

/** paid = streamed + refunded, to the last unit, by the receipt and by the chain's own balances. */
function assertConserved(receipt) {
  assert.equal(BigInt(receipt.paid) * UNIT, BigInt(receipt.streamed) + BigInt(receipt.refunded) * UNIT);
  assert.equal(receipt.dust, '0');
}

test('one voucher opens a session, the official client chats, and every unit is accounted for', async () => {
  const account = await payer(1_000_000n);
  const { session, settlement } = await open(account);
  assert.equal(settlement.success, true);
  assert.equal(session.state, 'open');
  assert.equal(session.paid, String((60 + 600 + 120 + 30) * 100), 'seconds and allowance, times the rate');
  assert.equal(await usdcOf(account.address), 1_000_000n - BigInt(session.paid), 'the voucher was settled');
  assert.equal(await rateOf(session.vault), 0n, 'nothing streams before anything is asked');

  const operators = (await show(session)).stream.operators.map(({ operator }) => operator);
  assert.equal(operators.length, 2);
  const before = await Promise.all(operators.map((operator) => receivedBy(session.terms.pool, operator)));
  const stream = await ask(session).chat.completions.create({
    model: MODEL, messages: QUESTION, stream: true, temperature: 0,
  });
  let answer = '';
  for await (const part of stream) answer += part.choices[0]?.delta?.content ?? '';
  assert.ok(answer.length > 10, `an answer came: ${answer}`);

  await until('the stream runs', async () => (await rateOf(session.vault)) === 100n * UNIT);
  await until('the stream stops a linger after the answer', async () => (await rateOf(session.vault)) === 0n);
  const closed = await close(session);
  assert.equal(closed.state, 'closed', JSON.stringify(closed));
  assertConserved(closed.receipt);
  assert.ok(BigInt(closed.receipt.streamed) > 0n, 'the operators were paid');
  assert.equal(await usdcOf(account.address), 1_000_000n - BigInt(closed.receipt.paid) + BigInt(closed.receipt.refunded));
  const after = await Promise.all(operators.map((operator) => receivedBy(session.terms.pool, operator)));
  const earned = after.map((amount, place) => amount - before[place]);
  assert.equal(earned.reduce((sum, amount) => sum + amount), BigInt(closed.receipt.streamed), 'all of it went to them');
  assert.equal(earned[0], earned[1], 'equal layers, equal shares');

  const late = await fetch(`${api}/chat/completions`, {
    method: 'POST', headers: { ...json, ...bearer(session).headers },
    body: JSON.stringify({ model: MODEL, messages: QUESTION }),
  });
  assert.equal(late.status, 401, 'a closed session answers nothing');
});

test('a wallet pays for one request: openai with the paying fetch', async () => {
  const account = await payer(1_000_000n);
  const client = new OpenAI({
    baseURL: api, apiKey: 'unused', maxRetries: 0, fetch: paying(account),
    defaultHeaders: { 'X-Payer': account.address, Authorization: null },
  });
  const { data, response } = await client.chat.completions
    .create({ model: MODEL, messages: QUESTION, temperature: 0, max_tokens: 32 })
    .withResponse();
  assert.ok(data.choices[0].message.content.length > 10);
  const settlement = JSON.parse(Buffer.from(response.headers.get('payment-response'), 'base64'));
  assert.equal(settlement.success, true);
  const left = await until('the rest is refunded', async () => {
    const now = await usdcOf(account.address);
    return now > 1_000_000n - 10_000n && now;
  });
  assert.ok(left <= 1_000_000n, 'no more than was paid comes back');
});

test('a payer closes without the orchestrator, in the middle of an answer', async () => {
  const account = await payer(1_000_000n);
  const { session } = await open(account);
  const stream = await ask(session).completions.create({
    model: MODEL, prompt: 'a', stream: true, max_tokens: 900, ignore_eos: true, n: 8,
  });
  const reader = stream[Symbol.asyncIterator]();
  await reader.next();
  await until('the stream runs', async () => (await rateOf(session.vault)) > 0n);
  const receipt = await closeDirectly(account, session.vault);
  assert.equal(receipt.status, 'success');
  assert.equal(await isClosed(session.vault), true);
  assert.equal(await rateOf(session.vault), 0n);
  for (;;) {
    const part = await reader.next().catch(() => ({ done: true }));
    if (part.done) break;
  }
  await until('the orchestrator notices', async () => {
    const response = await fetch(`${api}/sessions/${session.id}`, bearer(session));
    const seen = await response.json();
    return seen.state === 'closed' && seen;
  }).then((seen) => {
    assertConserved(seen.receipt);
    assert.equal(seen.receipt.closed_by.toLowerCase(), account.address.toLowerCase());
  });
});

// ---- what is refused: with the reason, and nothing is charged ----

async function offer(account, seconds) {
  const response = await fetch(`${api}/sessions`, wish(account, seconds));
  assert.equal(response.status, 402);
  return JSON.parse(Buffer.from(response.headers.get('payment-required'), 'base64'));
}

async function sign(account, accepted, change = {}) {
  const now = Math.floor(Date.now() / 1000);
  const authorization = {
    from: account.address, to: accepted.payTo, value: accepted.amount, validAfter: String(now - 600),
    validBefore: String(now + 600), nonce: `0x${Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString('hex')}`,
    ...change.authorization,
  };
  const signature = await account.signTypedData({
    domain: {
      name: accepted.extra.name, version: accepted.extra.version, chainId: change.chainId ?? book.chainId,
      verifyingContract: accepted.asset,
    },
    types: {
      TransferWithAuthorization: [
        { name: 'from', type: 'address' }, { name: 'to', type: 'address' }, { name: 'value', type: 'uint256' },
        { name: 'validAfter', type: 'uint256' }, { name: 'validBefore', type: 'uint256' },
        { name: 'nonce', type: 'bytes32' },
      ],
    },
    primaryType: 'TransferWithAuthorization',
    message: authorization,
  });
  return {
    x402Version: 2, payload: { signature: change.signature ?? signature, authorization },
    accepted: { ...accepted, ...change.accepted },
  };
}

const present = (account, payment, seconds) =>
  fetch(`${api}/sessions`, {
    ...wish(account, seconds),
    headers: { ...json, 'payment-signature': Buffer.from(JSON.stringify(payment)).toString('base64') },
  });

async function cancel(account, payment) {
  const { nonce } = payment.payload.authorization;
  const signature = await account.signTypedData({
    domain: { name: 'USD Coin', version: '1', chainId: book.chainId, verifyingContract: book.contracts.usdc },
    types: { CancelAuthorization: [{ name: 'authorizer', type: 'address' }, { name: 'nonce', type: 'bytes32' }] },
    primaryType: 'CancelAuthorization',
    message: { authorizer: account.address, nonce },
  });
  const { r, s, v } = parseSignature(signature);
  const args = [account.address, nonce, Number(v), r, s];
  return send(account, { address: book.contracts.usdc, abi: usdcAbi, functionName: 'cancelAuthorization', args });
}

test('vouchers that do not hold are refused with the reason, and nothing is charged', async () => {
  const account = await payer(1_000_000n);
  const { accepts: [accepted] } = await offer(account);
  const now = Math.floor(Date.now() / 1000);
  const flipped = async () => {
    const { payload } = await sign(account, accepted);
    return { signature: `${payload.signature.slice(0, 10)}${payload.signature[10] === 'a' ? 'b' : 'a'}${payload.signature.slice(11)}` };
  };
  const stranger = await payer(1_000_000n);
  const cases = {
    expired: { authorization: { validBefore: String(now - 1) } },
    not_yet_valid: { authorization: { validAfter: String(now + 300) } },
    wrong_amount: { authorization: { value: '1' } },
    wrong_recipient: { authorization: { to: stranger.address } },
    wrong_payer: { authorization: { from: stranger.address } },
    wrong_network: { accepted: { network: 'eip155:1' } },
    wrong_asset: { accepted: { asset: stranger.address } },
    bad_signature: await flipped(),
    smart_wallet_not_supported: { signature: `0x${'ab'.repeat(96)}` },
  };
  for (const [code, change] of Object.entries(cases)) {
    const response = await present(account, await sign(account, accepted, change));
    const body = await response.json();
    assert.equal(response.status, 402, `${code}: ${JSON.stringify(body)}`);
    assert.equal(body.error.code, code, JSON.stringify(body));
    assert.ok(response.headers.get('payment-required'), 'a new offer comes with the refusal');
  }
  const elsewhere = await present(account, await sign(account, accepted, { chainId: 1 }));
  assert.equal((await elsewhere.json()).error.code, 'bad_signature', 'a signature for another chain');

  const cancelled = await sign(account, accepted);
  await cancel(account, cancelled);
  assert.equal((await (await present(account, cancelled)).json()).error.code, 'cancelled');

  const cheaper = await sign(account, accepted);
  assert.equal((await (await present(account, cheaper, 600)).json()).error.code, 'unknown_offer', 'ten times the time for the same price');

  const poor = await payer(1n);
  const { accepts: [dear] } = await offer(poor);
  assert.equal((await (await present(poor, await sign(poor, dear))).json()).error.code, 'insufficient_balance');
  assert.equal(await usdcOf(account.address), 1_000_000n, 'nothing was charged by any of these');
});

test('an offer for tokens can be paid although the measured speed has changed meanwhile', async () => {
  const account = await payer(5_000_000n);
  const wanted = { method: 'POST', headers: json, body: JSON.stringify({ model: MODEL, payer: account.address, tokens: 2_000_000 }) };
  const offered = await fetch(`${api}/sessions`, wanted);
  assert.equal(offered.status, 402);
  const { accepts: [accepted] } = JSON.parse(Buffer.from(offered.headers.get('payment-required'), 'base64'));
  const { session } = await open(await payer(1_000_000n));
  // Answers side by side are slower than one alone, so the measured speed changes; by enough after a few times.
  let amount = accepted.amount;
  for (let round = 0; round < 20 && amount === accepted.amount; round += 1) {
    await Promise.all([1, 2, 3, 4, 5, 6].map(() =>
      ask(session).completions.create({ model: MODEL, prompt: 'a', max_tokens: 300, ignore_eos: true })));
    const changed = await fetch(`${api}/sessions`, wanted);
    const { accepts: [other] } = JSON.parse(Buffer.from(changed.headers.get('payment-required'), 'base64'));
    amount = other.amount;
  }
  assert.notEqual(amount, accepted.amount, 'the measured speed has changed, and the price of a token with it');
  const payment = await sign(account, accepted);
  const paid = await fetch(`${api}/sessions`, {
    ...wanted, headers: { ...json, 'payment-signature': Buffer.from(JSON.stringify(payment)).toString('base64') },
  });
  const bought = await paid.json();
  assert.equal(paid.status, 201, JSON.stringify(bought));
  assert.equal(bought.paid, accepted.amount);
  assertConserved((await close(bought)).receipt);
  assertConserved((await close(session)).receipt);
});

test('a voucher opens one session, however often it is presented', async () => {
  const account = await payer(1_000_000n);
  const { accepts: [accepted] } = await offer(account);
  const payment = await sign(account, accepted);
  const answers = await Promise.all([1, 2, 3, 4].map(() => present(account, payment)));
  const statuses = answers.map(({ status }) => status).sort();
  assert.deepEqual(statuses, [201, 402, 402, 402]);
  const refused = await present(account, payment);
  assert.equal((await refused.json()).error.code, 'replayed');
  assert.equal(await usdcOf(account.address), 1_000_000n - BigInt(accepted.amount), 'it was charged once');
  const opened = await answers.find(({ status }) => status === 201).json();
  const closed = await close(opened);
  assertConserved(closed.receipt);
  assert.equal(await usdcOf(account.address), 1_000_000n, 'nothing was used, so all of it came back');
});

test('bad requests get a clear error and cost nothing', async () => {
  const account = await payer(1_000_000n);
  const post = async (body, headers = {}) => {
    const response = await fetch(`${api}/sessions`, { method: 'POST', headers: { ...json, ...headers }, body: JSON.stringify(body) });
    const { error } = await response.json();
    return [response.status, error.code, error.message];
  };
  const good = { model: MODEL, payer: account.address, seconds: 60 };
  const cases = [
    [{ ...good, model: 'huge' }, 404], [{ ...good, payer: 'me' }, 400], [{ ...good, payer: undefined }, 400],
    [{ ...good, payer: `0x${'0'.repeat(40)}` }, 400], [{ ...good, seconds: undefined }, 400],
    [{ ...good, tokens: 5 }, 400], [{ ...good, seconds: 1 }, 400], [{ ...good, seconds: 1e9 }, 400],
    [{ ...good, seconds: -5 }, 400], [{ ...good, seconds: 1.5 }, 400], [{ ...good, more: 1 }, 400], [[], 400],
  ];
  for (const [body, status] of cases) {
    const found = await post(body);
    assert.equal(found[0], status, JSON.stringify([body, found]));
    assert.ok(found[2].endsWith('.') && !/0x[0-9a-f]{64}|panick|revert/.test(found[2]), found[2]);
  }
  for (const header of ['', 'x', Buffer.from('{}').toString('base64'), 'A'.repeat(20_000)]) {
    const [status, code] = await post(good, { 'payment-signature': header });
    assert.ok((status === 400 && code === 'payment_malformed') || (status === 402 && header === ''), `${status} ${code}`);
  }
  const unpaid = await fetch(`${api}/chat/completions`, { method: 'POST', headers: json, body: JSON.stringify({ model: MODEL, messages: QUESTION }) });
  assert.deepEqual([unpaid.status, (await unpaid.json()).error.code], [400, 'payer_missing']);
  for (const id of ['x', `0x${'1'.repeat(64)}`]) {
    assert.equal((await fetch(`${api}/sessions/${id}`, { headers: { authorization: 'Bearer cps_nothing' } })).status, 404);
    assert.equal((await fetch(`${api}/sessions/${id}`, { method: 'DELETE' })).status, 404);
  }
  const [{ computepool }] = (await (await fetch(`${api}/models`)).json()).data;
  assert.equal(computepool.price.per_second, '100');
  assert.match(computepool.price.per_million_tokens, /^\d+$/, 'the speed was measured before anybody paid');
});
