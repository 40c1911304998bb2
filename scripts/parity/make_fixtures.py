#!/usr/bin/env python3
"""Makes the parity fixtures: what `transformers` computes for each model of `configurations.py`.

    make_fixtures.py                      write every fixture into crates/pool-engine/tests/fixtures/parity
    make_fixtures.py --check              recompute and compare with the committed fixtures (1e-4)
    make_fixtures.py --seed 7 --out DIR   other weights and prompts, for a live comparison:
                                          POOL_PARITY_FIXTURES=DIR cargo test -p pool-engine --test parity

A fixture holds no weights: both sides make them from the seed (`weights.py`). Its rows are log-probabilities (natural,
of the unmodified distribution) of one full forward pass in float32 with eager attention over prompt and answer; the
answer is `generate`'s greedy one, with its cache. Row `position` is what the model expects after the token there.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import torch
import transformers

import weights
from configurations import MODELS, Model

STEPS = 40
TOP = 8
WATCHED = 6
CHOSEN_PROMPT_ROWS = 6
SMALLEST_MARGIN = 0.01
TOLERANCE = 1e-4
STORAGE = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "crates/pool-engine/tests/fixtures/parity"


def build(model: Model, seed: int):
    """The transformers model with seeded weights, and the shapes of its stored tensors (`*` stands for a layer)."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "config.json").write_text(json.dumps(model.config))
        config = transformers.AutoConfig.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    network.eval()
    shapes: dict[str, list[int]] = {}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "rotary" in name:
                continue
            values = torch.from_numpy(weights.tensor(seed, name, tuple(parameter.shape)))
            parameter.copy_(values.to(STORAGE[model.storage]).to(torch.float32))
            parts = name.split(".")
            if parts[1] == "layers":
                parts[2] = "*"
            shapes[".".join(parts)] = list(parameter.shape)
    return network, shapes


def forward(network, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities `[tokens, vocabulary]`."""
    with torch.no_grad():
        logits = network(torch.tensor([tokens]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), dim=-1)


def greedy(network, prompt: list[int]) -> list[int]:
    """The greedy answer, generated with transformers' own cache."""
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = 0
    inputs = torch.tensor([prompt])
    output = network.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=STEPS)
    return output[0, len(prompt):].tolist()


def answer(model: Model, network, seed: int, attempt: int):
    """Prompt, answer, log-probabilities and the smallest top-2 margin of the answer's rows."""
    prompt = weights.tokens(seed, f"prompt {attempt}", model.prompt, model.config["vocab_size"])
    continuation = greedy(network, prompt)
    rows = forward(network, prompt + continuation)
    predicting = rows[len(prompt) - 1 : -1]
    best = predicting.topk(2, dim=-1)
    margin = (best.values[:, 0] - best.values[:, 1]).min().item()
    agrees = best.indices[:, 0].tolist() == continuation
    return prompt, continuation, rows, margin if agrees else 0.0


def row(log_probabilities: torch.Tensor, position: int, watched: list[int]) -> dict:
    """What a fixture keeps of one row."""
    top = log_probabilities[position].topk(TOP)
    return {
        "position": position,
        "top": [[token, round(value, 6)] for token, value in zip(top.indices.tolist(), top.values.tolist())],
        "watched": [round(log_probabilities[position, token].item(), 6) for token in watched],
    }


def expectations(model: Model, network, seed: int, attempt: int | None) -> dict:
    """Prompt, answer and rows, and two companions: other sequences to be advanced in the same batch.

    `attempt` names the prompt; without it the first is taken whose answer has clear margins.
    """
    for number in range(200) if attempt is None else [attempt]:
        prompt, continuation, rows, margin = answer(model, network, seed, number)
        if margin >= SMALLEST_MARGIN or attempt is not None:
            break
    else:
        raise SystemExit(f"{model.name}: no prompt with clear margins")
    vocabulary = model.config["vocab_size"]
    watched = [(k * vocabulary) // WATCHED for k in range(WATCHED)]
    positions = [(k * (len(prompt) - 1)) // CHOSEN_PROMPT_ROWS for k in range(CHOSEN_PROMPT_ROWS)]
    positions += range(len(prompt) - 1, len(prompt) + STEPS)
    return {
        "attempt": number,
        "prompt": prompt,
        "answer": continuation,
        "watched": watched,
        "rows": [row(rows, position, watched) for position in positions],
        "companions": [companion(model, network, seed, number, watched) for number in range(2)],
    }


def companion(model: Model, network, seed: int, number: int, watched: list[int]) -> dict:
    """A short (0) or longer (1) sequence without an answer, and four of its rows."""
    length = (6 + seed % 11, 30 + seed % 17)[number]
    tokens = weights.tokens(seed, f"companion {number}", length, model.config["vocab_size"])
    rows = forward(network, tokens)
    return {"tokens": tokens, "rows": [row(rows, k * (length - 1) // 3, watched) for k in range(4)]}


def seed_of(name: str, base_seed: int) -> int:
    """A fixture's own seed, so that no other fixture changes when one is added."""
    return base_seed * 1_000_000 + weights.fnv1a(name) % 1_000_000


def fixture(model: Model, base_seed: int, attempt: int | None) -> dict:
    """One fixture."""
    seed = seed_of(model.name, base_seed)
    network, shapes = build(model, seed)
    form = {"storage": model.storage, "files": model.files, "config": model.config, "tensors": shapes}
    return {"name": model.name, "seed": seed} | form | expectations(model, network, seed, attempt)


def differences(committed: dict, fresh: dict) -> list[str]:
    """What of a committed fixture a fresh computation does not confirm."""
    found = [key for key in fresh if key not in ("rows", "companions") and committed.get(key) != fresh[key]]
    pairs = list(zip(committed["rows"], fresh["rows"], strict=True))
    for before, now in zip(committed["companions"], fresh["companions"], strict=True):
        found += ["companion"] if before["tokens"] != now["tokens"] else []
        pairs += zip(before["rows"], now["rows"], strict=True)
    for old, new in pairs:
        # Two of the top tokens may swap places where they are as good as equal: compare by token.
        after = dict(map(tuple, new["top"]))
        values = [(value, after.get(token, new["top"][-1][1])) for token, value in old["top"]]
        values += zip(old["watched"], new["watched"], strict=True)
        worst = max(abs(before - now) for before, now in values)
        if old["position"] != new["position"] or worst > TOLERANCE:
            found.append(f"row {old['position']} by {worst:.6f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed fixtures, write nothing")
    parser.add_argument("--out", type=pathlib.Path, default=FIXTURES, help="where fixtures are written")
    parser.add_argument("--seed", type=int, default=1, help="of weights and prompts")
    parser.add_argument("--only", default="", help="only models whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    failures = 0
    written = 0
    for model in MODELS:
        if arguments.only not in model.name:
            continue
        path = arguments.out / f"{model.name}.json"
        if arguments.check:
            committed = json.loads(path.read_text())
            found = differences(committed, fixture(model, arguments.seed, committed["attempt"]))
            failures += bool(found)
            print(f"{model.name}: {'differs: ' + ', '.join(found) if found else 'as committed'}")
        else:
            made = fixture(model, arguments.seed, None)
            text = json.dumps(made, separators=(",", ":"))
            arguments.out.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
            written += len(text) + 1
            print(f"{model.name}: prompt {made['attempt']}, {len(set(made['answer']))} distinct tokens")
    if arguments.check:
        strays = {path.stem for path in arguments.out.glob("*.json")} - {model.name for model in MODELS}
        for name in sorted(strays):
            print(f"{name}: no such model in configurations.py")
        failures += len(strays)
    else:
        print(f"{written} bytes")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
