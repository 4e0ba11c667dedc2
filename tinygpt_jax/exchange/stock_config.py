"""Our configuration as that of one of Hugging Face's stock classes, and theirs as ours.

gpt2         pre-LN: GPT-2 (Radford et al. 2019)
openai-gpt   post-LN: GPT (Radford et al. 2018), whose feed-forward layer is always 4 d_model wide
gpt_neox     pre-LN with rotary positions: GPT-NeoX (Black et al. 2022), its sub-layers one after the other
gpt_neo      pre-LN, only read: GPT-Neo, the form of the models of the TinyStories paper (Eldan & Li 2023)
"""

from collections.abc import Mapping
from typing import Any

from tinygpt_jax.config import ModelConfig
from tinygpt_jax.errors import UsageError

_GPT2 = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_model": "n_embd",
    "d_ff": "n_inner",
    "dropout": "resid_pdrop",
    "activation": "activation_function",
    "tie_embeddings": "tie_word_embeddings",
}
# What each kind of configuration calls our settings.
_NAMES = {
    "gpt2": _GPT2,
    "openai-gpt": {ours: name for ours, name in _GPT2.items() if ours != "d_ff"} | {"activation": "afn"},
    "gpt_neo": _GPT2
    | {
        "context_length": "max_position_embeddings",
        "n_layers": "num_layers",
        "n_heads": "num_heads",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "dropout": "resid_dropout",
    },
    "gpt_neox": _GPT2
    | {
        "context_length": "max_position_embeddings",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "dropout": "hidden_dropout",
        "activation": "hidden_act",
    },
}
_ACTIVATIONS = {
    "gpt2": {"relu": "relu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"},
    "openai-gpt": {"relu": "relu", "gelu": "gelu"},  # what this class calls gelu is the tanh form
}
_ACTIVATIONS["gpt_neo"] = _ACTIVATIONS["gpt_neox"] = _ACTIVATIONS["gpt2"]
# What a configuration means where it says nothing.
_DEFAULTS = {
    "gpt2": (50_257, 1024, 12, 12, 768, None, 0.1, "gelu_new", True),
    "openai-gpt": (40_478, 512, 12, 12, 768, 0.1, "gelu", True),
    "gpt_neo": (50_257, 2048, 24, 16, 2048, None, 0.0, "gelu_new", True),
    "gpt_neox": (50_432, 2048, 44, 64, 6144, 24_576, 0.0, "gelu", False),
}
# What else would change the arithmetic: the one value that is ours, and what it is where nothing is said.
_FIXED = {
    "gpt2": {
        "layer_norm_epsilon": (1e-5, 1e-5),
        "scale_attn_weights": (True, True),
        "scale_attn_by_inverse_layer_idx": (False, False),
        "add_cross_attention": (False, False),
    },
    "openai-gpt": {"layer_norm_epsilon": (1e-5, 1e-5)},
    "gpt_neo": {"layer_norm_epsilon": (1e-5, 1e-5)},
    "gpt_neox": {
        "layer_norm_eps": (1e-5, 1e-5),
        "use_parallel_residual": (False, True),
        "attention_bias": (True, True),
        "rotary_pct": (1.0, 0.25),
        "rotary_emb_base": (10_000, 10_000),
        "rope_scaling": (None, None),
    },
}
# Where later versions of the library keep what turns the heads, and how it was called before.
_ROPE = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}


def stock_config(config: ModelConfig) -> dict[str, Any]:
    """The configuration of the stock class that computes a model with learned or rotary positions.

    Raises:
        UsageError: there is none.
    """
    kind, name = ("gpt2", "GPT2LMHeadModel") if config.norm == "pre" else ("openai-gpt", "OpenAIGPTLMHeadModel")
    if config.positions == "rotary":
        if config.norm == "post":
            raise UsageError(
                "Hugging Face has no class for post-LN with rotary positions: a model trained with --norm pre fits, "
                "and --format native takes any"
            )
        kind, name = "gpt_neox", "GPTNeoXForCausalLM"
    wide = 4 * config.d_model
    if config.norm == "post" and config.d_ff != wide:
        raise UsageError(
            f"Hugging Face has no class for post-LN with d_ff {config.d_ff}: its OpenAI GPT needs 4 d_model, {wide}; "
            f"a model trained with --d-ff {wide} or with --norm pre fits, and --format native takes any"
        )
    document = {theirs: getattr(config, ours) for ours, theirs in _NAMES[kind].items()}
    document |= {setting: ours for setting, (ours, _) in _FIXED[kind].items() if ours is not None}
    if kind == "gpt_neox":
        rope = {later: document[before] for later, before in _ROPE.items()}
        document |= {"attention_dropout": 0.0, "rope_parameters": {"rope_type": "default", **rope}}
    else:
        document |= {"embd_pdrop": config.dropout, "attn_pdrop": 0.0}
    called = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS[kind].items())}
    return document | {
        "model_type": kind,
        "architectures": [name],
        _NAMES[kind]["activation"]: called[config.activation],
        "dtype": "float32",
    }


def model_config(document: Mapping[str, Any]) -> ModelConfig:
    """The model that a configuration of a stock class describes; its positions are learned or rotary.

    Raises:
        UsageError: it is of another class, or of an arithmetic that is not ours.
    """
    kind = document.get("model_type")
    if not isinstance(kind, str) or kind not in _NAMES:
        raise UsageError(f"model_type {_shown(kind)} is not one of {', '.join(_NAMES)}")
    if isinstance(rope := document.get("rope_parameters"), dict) and kind == "gpt_neox":
        if rope.get("rope_type", "default") != "default":
            raise UsageError(f"rope_type is {_shown(rope['rope_type'])}; in this program it is always default")
        document = {**document, **{before: rope[later] for later, before in _ROPE.items() if later in rope}}
    for name, (ours, unsaid) in _FIXED[kind].items():
        if (found := document.get(name, unsaid)) != ours:
            raise UsageError(f"{name} is {_shown(found)}; in this program it is always {ours}")
    defaults = dict(zip(_NAMES[kind], _DEFAULTS[kind], strict=True))
    values = {ours: document.get(theirs, defaults[ours]) for ours, theirs in _NAMES[kind].items()}
    activation, known = values["activation"], _ACTIVATIONS[kind]
    if not isinstance(activation, str) or activation not in known:
        raise UsageError(f"the activation {_shown(activation)} is not one of {', '.join(known)}")
    if values.get("d_ff") is None and type(values["d_model"]) is int:
        values["d_ff"] = 4 * values["d_model"]
    values |= {"activation": known[activation], "norm": "post" if kind == "openai-gpt" else "pre"}
    return ModelConfig(**values, positions="rotary" if kind == "gpt_neox" else "learned")


def attention_window(document: Mapping[str, Any]) -> int | None:
    """How far back every layer of a GPT-Neo sees; None: as far as there is text.

    Raises:
        UsageError: it says something else of its layers' attention than global or local.
    """
    if document["model_type"] != "gpt_neo":
        return None
    types = document.get("attention_types") or [[["global", "local"], 12]]
    try:
        kinds = {kind for pattern, _ in types for kind in pattern}
    except (TypeError, ValueError):
        kinds = {None}
    if not kinds <= {"global", "local"}:
        raise UsageError(f"attention_types {_shown(document['attention_types'])} are not lists of global and local")
    window = document.get("window_size", 256)
    if type(window) is not int or window < 1:
        raise UsageError(f"window_size {_shown(window)} is no number of tokens")
    return window if "local" in kinds else None


def _shown(value: Any) -> str:
    return repr(value)[:60]
