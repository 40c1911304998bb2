"""The random-weight models of the parity fixtures: what each one is there to catch.

Each is the `config.json` of a real checkpoint of its family in small. `old` is the form that checkpoints of 2023-2025
carry (`rope_theta`, `rope_scaling`, `torch_dtype`), `new` the one transformers 5 writes (`rope_parameters`, `dtype`).
"""

from dataclasses import dataclass

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Model:
    """A configuration, how its weights are stored, and how long its prompt is."""

    name: str
    storage: str
    files: int
    prompt: int
    config: dict


def model(
    name,
    *,
    hidden,
    heads,
    kv,
    layers=3,
    ffn=None,
    vocab=128,
    head_dim=None,
    tied=False,
    theta=10000.0,
    scaling=None,
    form="old",
    storage="f32",
    files=1,
    prompt=40,
    eps=1e-6,
    omit=(),
    **extra,
):
    """One configuration; `extra` goes into config.json as it is, fields named in `omit` are left to their defaults."""
    family = name.split("-")[0]
    config = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn or 2 * hidden + 8,
        "max_position_embeddings": 512,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv,
        "rms_norm_eps": eps,
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": vocab,
    }
    if head_dim is not None:
        config["head_dim"] = head_dim
    if form == "old":
        config |= {"rope_theta": theta, "rope_scaling": scaling, "torch_dtype": DTYPES[storage]}
    else:
        config |= {
            "rope_parameters": {"rope_type": "default", "rope_theta": theta} | (scaling or {}),
            "dtype": DTYPES[storage],
        }
    config |= extra
    for field in omit:
        del config[field]
    return Model(name, storage, files, prompt, config)


def linear(factor, key="rope_type"):
    """Linear scaling; older checkpoints say `type`."""
    return {key: "linear", "factor": factor}


def llama3(factor=8.0, low=1.0, high=4.0, original=32):
    """Llama 3.1's scaling with a training context so short that every branch of it is taken."""
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


FULL, SLIDING = "full_attention", "sliding_attention"

MODELS = [
    # Llama 2: no grouped queries, defaults left out as its early checkpoints did.
    model("llama-mha", hidden=64, heads=4, kv=4, eps=1e-5),
    model(
        "llama-bare-config", hidden=48, heads=6, kv=6, layers=2,
        omit=("num_key_value_heads", "rope_theta", "rope_scaling", "rms_norm_eps", "tie_word_embeddings"),
    ),
    model("llama-two-files", hidden=64, heads=4, kv=2, layers=4, files=2, prompt=55),
    model("llama-f16", hidden=96, heads=6, kv=2, storage="f16", eps=1e-5),
    model("llama-bf16-three-files", hidden=80, heads=5, kv=1, layers=5, storage="bf16", files=3),
    model("llama-new-form", hidden=64, heads=8, kv=4, form="new", vocab=200),
    # Llama 3: large base, grouped queries, wavelength-dependent scaling.
    model("llama-theta-500000", hidden=64, heads=4, kv=1, theta=500000.0, eps=1e-5, prompt=70),
    model("llama-llama3-scaling", hidden=128, heads=4, kv=2, theta=500000.0, scaling=llama3(), prompt=64),
    model("llama-llama3-scaling-new", hidden=128, heads=8, kv=2, form="new", theta=500000.0, scaling=llama3(),
          prompt=64),
    model("llama-llama3-tied-bf16", hidden=96, heads=3, kv=1, tied=True, theta=500000.0, storage="bf16",
          scaling=llama3(32.0), prompt=60, head_dim=32),
    model("llama-llama3-other-factors", hidden=64, heads=2, kv=2, scaling=llama3(4.0, 2.0, 8.0, 48), prompt=50),
    model("llama-linear-scaling", hidden=64, heads=4, kv=2, scaling=linear(4.0), prompt=48),
    model("llama-linear-scaling-type-key", hidden=60, heads=3, kv=3, scaling=linear(2.5, "type"), prompt=33),
    model("llama-linear-scaling-new", hidden=64, heads=4, kv=4, form="new", scaling=linear(2.0), storage="f16"),
    # Shapes: odd heads, heads wider or narrower than hidden / heads, extremes of grouping.
    model("llama-seven-heads", hidden=84, heads=7, kv=7, layers=4, prompt=21),
    model("llama-nine-heads-three-kv", hidden=90, heads=9, kv=3, ffn=130, vocab=97),
    model("llama-five-heads-mqa", hidden=100, heads=5, kv=1, vocab=64, ffn=77),
    model("llama-wide-heads", hidden=48, heads=4, kv=2, head_dim=32, prompt=37),
    model("llama-narrow-heads", hidden=96, heads=4, kv=4, head_dim=10, prompt=29),
    model("llama-head-dim-two", hidden=32, heads=16, kv=8, head_dim=2, layers=2),
    model("llama-head-dim-128", hidden=64, heads=2, kv=1, head_dim=128, layers=2),
    model("llama-gqa-8", hidden=128, heads=16, kv=2, layers=2, vocab=320),
    model("llama-gqa-3", hidden=72, heads=6, kv=2, layers=3, ffn=64, vocab=111),
    model("llama-six-layers", hidden=40, heads=5, kv=5, layers=6, prompt=45),
    model("llama-tied", hidden=64, heads=4, kv=2, tied=True, vocab=256),
    model("llama-attention-bias", hidden=64, heads=4, kv=2, attention_bias=True),
    model("llama-mlp-bias", hidden=56, heads=7, kv=1, mlp_bias=True, layers=2),
    model("llama-all-biases-tied", hidden=64, heads=4, kv=4, attention_bias=True, mlp_bias=True, tied=True, form="new",
          storage="bf16"),
    # Mistral: a window shorter than the prompt, of several sizes, and none.
    model("mistral-window-16", hidden=64, heads=4, kv=2, sliding_window=16, prompt=60, eps=1e-5),
    model("mistral-window-3", hidden=64, heads=4, kv=1, sliding_window=3, prompt=30, layers=4),
    model("mistral-window-2", hidden=48, heads=3, kv=3, sliding_window=2, prompt=20, layers=2),
    model("mistral-window-at-prompt", hidden=64, heads=8, kv=2, sliding_window=40, prompt=40),
    model("mistral-no-window", hidden=64, heads=4, kv=1, sliding_window=None, theta=1000000.0, prompt=66),
    model("mistral-nemo-heads", hidden=80, heads=4, kv=2, head_dim=16, sliding_window=None, theta=1000000.0,
          storage="bf16"),
    model("mistral-window-new-form", hidden=96, heads=6, kv=3, sliding_window=21, form="new", theta=1000000.0,
          prompt=58, files=2),
    model("mistral-window-linear-f16", hidden=64, heads=4, kv=4, sliding_window=11, scaling=linear(3.0), storage="f16"),
    model("mistral-bare-config", hidden=64, heads=8, kv=8, layers=2,
          omit=("num_key_value_heads", "rope_theta", "rope_scaling", "rms_norm_eps", "tie_word_embeddings")),
    # Qwen2 and 2.5: biases on q, k, v; windows from a layer on, by a list of layer types, and switched off.
    model("qwen2-tied", hidden=56, heads=7, kv=1, tied=True, theta=1000000.0, storage="bf16",
          use_sliding_window=False, sliding_window=8, max_window_layers=1),
    model("qwen2-untied", hidden=64, heads=4, kv=2, theta=1000000.0, vocab=300, prompt=50),
    model("qwen2-window-from-layer-2", hidden=64, heads=4, kv=2, layers=4, use_sliding_window=True, sliding_window=12,
          max_window_layers=2, prompt=44),
    model("qwen2-window-everywhere", hidden=48, heads=6, kv=3, layers=3, use_sliding_window=True, sliding_window=7,
          max_window_layers=0, prompt=35),
    model("qwen2-layer-types", hidden=64, heads=4, kv=4, layers=5, use_sliding_window=True, sliding_window=9,
          form="new", layer_types=[FULL, SLIDING, SLIDING, FULL, SLIDING], prompt=50, tied=True),
    model("qwen2-window-default-from-layer-28", hidden=64, heads=4, kv=2, layers=3, use_sliding_window=True,
          sliding_window=9),
    model("qwen2-fourteen-heads", hidden=112, heads=14, kv=2, layers=2, storage="f16", ffn=160),
    model("qwen2-linear", hidden=60, heads=5, kv=1, scaling=linear(2.0), vocab=75, files=2),
    # Qwen3: norms on each head's q and k, head_dim of its own.
    model("qwen3-tied", hidden=64, heads=4, kv=2, head_dim=16, tied=True, theta=1000000.0, storage="bf16"),
    model("qwen3-wide-heads", hidden=40, heads=4, kv=1, head_dim=24, theta=1000000.0, prompt=52),
    model("qwen3-default-head-dim", hidden=32, heads=2, kv=1, layers=2, theta=1000000.0),
    model("qwen3-attention-bias", hidden=64, heads=8, kv=1, head_dim=8, attention_bias=True, layers=4),
    model("qwen3-new-form", hidden=96, heads=6, kv=2, head_dim=20, form="new", theta=1000000.0, storage="bf16", files=2,
          use_sliding_window=False, sliding_window=None),
    model("qwen3-window-from-layer-1", hidden=64, heads=4, kv=2, head_dim=16, layers=4, use_sliding_window=True,
          sliding_window=10, max_window_layers=1, prompt=48),
    model("qwen3-llama3-scaling", hidden=64, heads=5, kv=5, head_dim=12, scaling=llama3(), prompt=62, storage="f16"),
]
