"""Mixed requests with random cancels against the server that scripts/clients/run.sh started.

Fails when a token is lost or repeated (greedy answers must equal the ones given before the load), when a sequence or
a reservation is left behind, or when a shard's memory grows beyond its cache budget.

SOAK_SECONDS (default 600), SOAK_SEED (default: printed), SOAK_WORKERS (default 6).
"""

import asyncio
import os
import random
import time

import httpx
import openai

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
SEED = int(os.environ.get("SOAK_SEED", str(random.SystemRandom().randrange(1 << 31))))
WORKERS = int(os.environ.get("SOAK_WORKERS", "6"))
QUESTIONS = [
    "What is ComputePool?",
    "What is a shard?",
    "What is a coalition?",
    "Who pays the operators?",
    "Tell me a story about two computers.",
    "Why is the sky blue?",
]
# What a process may take beside its cache: allocator slack and link buffers, filled once.
SLACK = 48 << 20

URL = os.environ["COMPUTEPOOL_URL"].rstrip("/")
KEY = os.environ["COMPUTEPOOL_API_KEY"]
ROOT = URL.removesuffix("/v1")


def client() -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=120)


class Counts:
    answers = 0
    cancelled = 0
    compared = 0
    tokens = 0


async def greedy(api, model: str, question: str, tokens: int) -> str:
    answer = await api.chat.completions.create(
        model=model, temperature=0, max_tokens=tokens, messages=[{"role": "user", "content": question}]
    )
    return answer.choices[0].message.content


async def worker(number: int, model: str, expected: dict, until: float) -> None:
    chance = random.Random(SEED * 1000 + number)
    api = client()
    while time.monotonic() < until:
        question = chance.choice(QUESTIONS)
        kind = chance.random()
        if kind < 0.35:
            tokens = chance.choice([8, 64])
            text = await greedy(api, model, question, tokens)
            assert text == expected[question, tokens], f"seed {SEED}: {question!r} was answered {text!r}"
            Counts.compared += 1
        elif kind < 0.5:
            await api.chat.completions.create(
                model=model, n=2, seed=chance.randrange(1 << 30), max_tokens=chance.randrange(1, 60),
                messages=[{"role": "user", "content": question}],
            )
        else:
            stop_after = chance.randrange(0, 40) if kind < 0.8 else None
            stream = await api.chat.completions.create(
                model=model, stream=True, seed=chance.randrange(1 << 30), max_tokens=chance.randrange(1, 200),
                messages=[{"role": "user", "content": question * chance.randrange(1, 12)}],
            )
            seen = 0
            async for _ in stream:
                seen += 1
                if stop_after is not None and seen > stop_after:
                    await stream.close()
                    Counts.cancelled += 1
                    break
            Counts.tokens += seen
        Counts.answers += 1


def shards() -> list[dict]:
    view = httpx.get(f"{URL}/coalition", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert view["state"] == "active", f"seed {SEED}: the coalition is {view['state']}: {view['last_failure']}"
    return [member | {"kv_tokens": view["kv_tokens"]} for member in view["members"]]


async def main() -> None:
    print(f"soak: {SECONDS:.0f} s, {WORKERS} workers, seed {SEED}", flush=True)
    api = client()
    model = (await api.models.list()).data[0].id
    expected = {(q, n): await greedy(api, model, q, n) for q in QUESTIONS for n in (8, 64)}
    await asyncio.sleep(1.5)
    before = shards()
    epoch_dropped = [shard["stats"]["dropped_frames"] for shard in before]
    begun = time.monotonic()
    work = [asyncio.create_task(worker(i, model, expected, begun + SECONDS)) for i in range(WORKERS)]
    highest = [0] * len(before)
    while not all(task.done() for task in work):
        await asyncio.sleep(1)
        failed = [task.exception() for task in work if task.done() and task.exception()]
        if failed:
            for task in work:
                task.cancel()
            raise failed[0]
        highest = [max(h, shard["stats"]["resident_bytes"]) for h, shard in zip(highest, shards())]
    await asyncio.gather(*work)
    # Counters come once a second.
    await asyncio.sleep(2.5)
    for first, high, shard in zip(before, highest, shards()):
        stats, footprint = shard["stats"], shard["footprint"]
        assert stats["sequences"] == 0, f"seed {SEED}: {shard['name']} still holds {stats['sequences']} sequences"
        assert stats["kv_reserved"] == 0, f"seed {SEED}: {shard['name']} still reserves {stats['kv_reserved']} tokens"
        budget = shard["kv_tokens"] * footprint["kv_bytes_per_token"] + SLACK
        grown = high - first["stats"]["resident_bytes"]
        assert grown <= budget, f"seed {SEED}: {shard['name']} grew by {grown} bytes; its budget is {budget}"
        print(f"soak: {shard['name']}: grew by {grown / 2**20:.1f} MiB at most, budget {budget / 2**20:.1f} MiB")
    print(
        f"soak: {Counts.answers} requests, {Counts.cancelled} cancelled, {Counts.compared} greedy answers equal, "
        f"{sum(s['stats']['dropped_frames'] for s in shards()) - sum(epoch_dropped)} late frames dropped"
    )
    print("1 passed, 0 failed")


asyncio.run(main())
