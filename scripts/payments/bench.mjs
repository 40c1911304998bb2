// What payment costs: time to the first token with and without it, opening a session, a hundred sessions at once.
// Prints a table and, with --json FILE, writes the figures. Both sides run in turn on the same machine.

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import readline from 'node:readline';
import { performance } from 'node:perf_hooks';

const PAIRS = Number(process.env.PAIRS ?? 40);
const SESSIONS = Number(process.env.SESSIONS ?? 100);
const MODEL = 'tiny';
const program = process.env.COMPUTEPOOL_BIN;
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'computepool-bench-'));
const servers = [];

async function up(name, more) {
  const state = path.join(work, name);
  const words = ['up', '--model', 'models/tiny', '--shards', '2', '--api', '127.0.0.1:0', '--state', state, ...more];
  const child = spawn(program, words, { stdio: ['ignore', 'pipe', 'inherit'] });
  servers.push(child);
  for await (const line of readline.createInterface(child.stdout)) {
    if (line.startsWith('ready ')) return { url: line.slice(6), state };
  }
  throw new Error(`${name} did not start`);
}

const quantile = (numbers, part) => {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))];
};
const median = (numbers) => quantile(numbers, 0.5);
const load = () => os.loadavg()[0].toFixed(1);

/** Milliseconds from the request to the first token of a streamed answer, and the whole answer read. */
async function firstToken(url, token) {
  const begun = performance.now();
  const response = await fetch(`${url}/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) },
    body: JSON.stringify({ model: MODEL, messages: [{ role: 'user', content: 'What is a shard?' }], max_tokens: 24, temperature: 0, stream: true }),
  });
  if (response.status !== 200) throw new Error(`${response.status} ${await response.text()}`);
  let first;
  const decoder = new TextDecoder();
  for await (const bytes of response.body) {
    if (first === undefined && /"content":"[^"]/.test(decoder.decode(bytes, { stream: true }))) first = performance.now() - begun;
  }
  return first;
}

try {
  const free = await up('free', []);
  const paid = await up('paid', ['--pay', '--linger', '0']);
  process.env.COMPUTEPOOL_CHAIN = path.join(paid.state, 'chain.json');
  const { book, network, payer } = await import('./wallet.mjs');
  const { x402Client } = await import('@x402/core/client');
  const { ExactEvmScheme } = await import('@x402/evm/exact/client');
  const { wrapFetchWithPayment } = await import('@x402/fetch');
  const paying = (account) =>
    wrapFetchWithPayment(fetch, x402Client.fromConfig({
      schemes: [{ network, client: new ExactEvmScheme(account) }],
      spendControls: { allowedAssets: [{ network, asset: book.contracts.usdc, maxAmountPerPayment: '5000000' }] },
    }));
  const open = async (account, seconds) => {
    const begun = performance.now();
    const response = await paying(account)(`${paid.url}/sessions`, {
      method: 'POST', headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model: MODEL, payer: account.address, seconds }),
    });
    const session = await response.json();
    if (response.status !== 201) throw new Error(`${response.status} ${JSON.stringify(session)}`);
    return { session, milliseconds: performance.now() - begun };
  };
  const close = async (session) => {
    const answer = await fetch(`${paid.url}/sessions/${session.id}`, { method: 'DELETE', headers: { authorization: `Bearer ${session.token}` } });
    return answer.json();
  };
  const figures = { date: new Date().toISOString().slice(0, 10), cores: os.cpus().length };

  // With a linger of 0 every request starts and stops a stream: the most that payment can cost.
  const account = await payer(50_000_000n);
  const { session } = await open(account, 3600);
  const sides = { free: [], paid: [] };
  for (let pair = 0; pair < PAIRS + 3; pair += 1) {
    const order = pair % 2 ? ['free', 'paid'] : ['paid', 'free'];
    for (const side of order) {
      const taken = side === 'free' ? await firstToken(free.url) : await firstToken(paid.url, session.token);
      if (pair >= 3) sides[side].push(taken);
    }
  }
  const ratios = sides.paid.map((taken, pair) => taken / sides.free[pair]);
  figures.firstToken = {
    load: load(), pairs: PAIRS, freeMs: median(sides.free), paidMs: median(sides.paid), ratio: median(ratios),
    lowerQuartile: quantile(ratios, 0.25), upperQuartile: quantile(ratios, 0.75),
  };
  await close(session);

  const opened = [];
  for (let number = 0; number < 20; number += 1) {
    const one = await open(account, 60);
    opened.push(one.milliseconds);
    await close(one.session);
  }
  figures.open = { load: load(), sessions: opened.length, medianMs: median(opened), p95Ms: quantile(opened, 0.95) };

  const accounts = [];
  for (let number = 0; number < SESSIONS; number += 1) accounts.push(await payer(1_000_000n));
  const begun = performance.now();
  const many = await Promise.all(accounts.map((one) => open(one, 60)));
  const opening = performance.now() - begun;
  const answers = await Promise.allSettled(many.map(({ session: one }) => firstToken(paid.url, one.token)));
  const closed = await Promise.all(many.map(({ session: one }) => close(one)));
  const receipts = closed.map(({ receipt }) => receipt);
  const budget = 60n * 100n * 10n ** 12n;
  figures.concurrent = {
    load: load(), sessions: SESSIONS, openedInMs: opening, openMedianMs: median(many.map((one) => one.milliseconds)),
    openMostMs: Math.max(...many.map((one) => one.milliseconds)),
    answered: answers.filter(({ status }) => status === 'fulfilled').length,
    closed: receipts.filter(Boolean).length,
    pastBudget: receipts.filter((receipt) => receipt && BigInt(receipt.streamed) > budget).length,
    conserved: receipts.filter((receipt) => receipt
      && BigInt(receipt.paid) * 10n ** 12n === BigInt(receipt.streamed) + BigInt(receipt.refunded) * 10n ** 12n).length,
  };

  const { firstToken: first, open: one, concurrent } = figures;
  console.log(`first token, session open, linger 0: ${first.paidMs.toFixed(1)} ms with payment, ${first.freeMs.toFixed(1)} without; `
    + `ratio ${first.ratio.toFixed(2)} (${first.lowerQuartile.toFixed(2)} to ${first.upperQuartile.toFixed(2)}), ${first.pairs} pairs, load ${first.load}`);
  console.log(`opening a session: ${one.medianMs.toFixed(0)} ms, p95 ${one.p95Ms.toFixed(0)} ms, load ${one.load}`);
  console.log(`${concurrent.sessions} sessions at once: all open after ${(concurrent.openedInMs / 1000).toFixed(1)} s (median ${concurrent.openMedianMs.toFixed(0)} ms, `
    + `longest ${concurrent.openMostMs.toFixed(0)} ms); ${concurrent.answered} answered, ${concurrent.closed} closed, ${concurrent.conserved} conserved, `
    + `${concurrent.pastBudget} past their budget; load ${concurrent.load}`);
  const file = process.argv.indexOf('--json');
  if (file > 0) fs.writeFileSync(process.argv[file + 1], `${JSON.stringify(figures, null, 2)}\n`);
} finally {
  await Promise.all(servers.map((child) => new Promise((ended) => {
    child.on('exit', ended);
    child.kill('SIGTERM');
    setTimeout(() => child.kill('SIGKILL'), 30_000).unref();
  })));
  fs.rmSync(work, { recursive: true, force: true });
}
