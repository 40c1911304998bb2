"""Weights from a seed: the generator that the fixtures' two sides share.

The other side is `crates/pool-engine/tests/common/weights.rs`; both must stay in step. Element `i` of tensor `name`
(row major) under `seed` is

    state = mix(seed + fnv1a(name))                          64 bits, wrapping
    bits  = mix(state + (i + 1) * 0x9E3779B97F4A7C15) >> 40  24 bits
    value = f32((bits - 2^23) / 2^23 * spread + centre)      in f64, rounded once to f32, then to the storage type

where `mix` is SplitMix64's finaliser and `fnv1a` the 64-bit FNV-1a hash of the tensor's UTF-8 name. `spread` and
`centre` depend on the name's end alone (see `spread_and_centre`).
"""

import math

import numpy

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def fnv1a(text: str) -> int:
    """The 64-bit FNV-1a hash of `text` in UTF-8."""
    digest = 0xCBF29CE484222325
    for byte in text.encode():
        digest = ((digest ^ byte) * 0x100000001B3) & MASK
    return digest


def mix(states: numpy.ndarray) -> numpy.ndarray:
    """SplitMix64's finaliser, element by element."""
    states = (states ^ (states >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    states = (states ^ (states >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return states ^ (states >> numpy.uint64(31))


def stream(seed: int, name: str, count: int) -> numpy.ndarray:
    """The first `count` 64-bit numbers of the stream called `name`."""
    start = mix(numpy.array([(seed + fnv1a(name)) & MASK], dtype=numpy.uint64))
    steps = numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(GOLDEN)
    return mix(start + steps)


def spread_and_centre(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Half the width and the middle of a tensor's uniform distribution.

    Chosen so that hidden states stay near 1, attention is peaked enough to notice a wrong rotation, and logits have a
    standard deviation near 3.
    """
    if name.endswith("norm.weight"):
        return 0.3, 1.0
    if name.endswith(".bias"):
        return 0.3, 0.0
    gain = 3.0 if name in ("model.embed_tokens.weight", "lm_head.weight") else 1.5
    return gain * math.sqrt(3.0 / shape[-1]), 0.0


def tensor(seed: int, name: str, shape: tuple[int, ...]) -> numpy.ndarray:
    """The tensor in f32, before it is rounded to its storage type."""
    spread, centre = spread_and_centre(name, shape)
    bits = (stream(seed, name, math.prod(shape)) >> numpy.uint64(40)).astype(numpy.int64)
    unit = (bits - (1 << 23)).astype(numpy.float64) / float(1 << 23)
    return (unit * spread + centre).astype(numpy.float32).reshape(shape)


def tokens(seed: int, name: str, count: int, vocabulary: int) -> list[int]:
    """`count` token ids below `vocabulary`."""
    return [int(word) % vocabulary for word in stream(seed, name, count) >> numpy.uint64(16)]
