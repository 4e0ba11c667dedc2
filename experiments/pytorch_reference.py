"""The same model in plain PyTorch, read from an exported folder. Needs only torch and safetensors.

    python experiments/pytorch_reference.py model/ 7 1 4

prints the most probable tokens after tokens 7, 1, 4. The formulas are those of `tinygpt_jax/functional.py`.
"""

import json
import math
import sys
from pathlib import Path

try:
    import torch
    import torch.nn.functional as F
    from safetensors import SafetensorError
    from safetensors.torch import load_file
except ModuleNotFoundError as error:
    sys.exit(f"error: this script needs {error.name}: pip install torch safetensors")

Parameters = dict[str, torch.Tensor]


def main() -> None:
    """Read the folder and the tokens from the command line, and print the five most probable next tokens."""
    if len(sys.argv) < 3 or not all(word.isdecimal() for word in sys.argv[2:]):
        sys.exit("usage: python experiments/pytorch_reference.py FOLDER TOKEN [TOKEN ...]")
    folder, tokens = sys.argv[1], [int(word) for word in sys.argv[2:]]
    try:
        parameters, config = load(Path(folder))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        sys.exit(f"error: {folder} is no folder that experiments.export wrote: {error}")
    if max(tokens) >= config["vocab_size"] or len(tokens) > config["context_length"]:
        most = f"at most {config['context_length']} tokens, each below {config['vocab_size']}"
        sys.exit(f"error: tokens {' '.join(sys.argv[2:])}: the model reads {most}")
    logits = forward(parameters, config, torch.tensor([tokens]))
    for probability, token in zip(*logits[0, -1].softmax(-1).topk(5), strict=True):
        print(f"token {int(token):>6}  probability {float(probability):.4f}")


def load(folder: Path) -> tuple[Parameters, dict]:
    """The parameters and the model's part of the configuration."""
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())["model"]


def forward(parameters: Parameters, config: dict, tokens: torch.Tensor) -> torch.Tensor:
    """Logits `[batch, length, vocab_size]` after each of `tokens` `[batch, length]`."""
    p, d_model, length = parameters, config["d_model"], tokens.shape[1]
    x = p["token_embedding"][tokens]
    x = x + p["position_embedding"][:length] if config["positions"] == "learned" else x * math.sqrt(d_model)
    if config["positions"] == "sinusoidal":
        x = x + sinusoids(length, d_model)
    for layer in range(config["n_layers"]):
        block = {name.split(".", 1)[1]: value for name, value in p.items() if name.startswith(f"blocks_{layer}.")}
        if config["norm"] == "pre":
            x = x + attention(block, layer_norm(block, "attention_norm", x), config)
            x = x + feed_forward(block, layer_norm(block, "feed_forward_norm", x), config["activation"])
        else:
            x = layer_norm(block, "attention_norm", x + attention(block, x, config))
            x = layer_norm(block, "feed_forward_norm", x + feed_forward(block, x, config["activation"]))
    if config["norm"] == "pre":
        x = layer_norm(p, "final_norm", x)
    return x @ (p["token_embedding"] if config["tie_embeddings"] else p["head_weight"]).T


def sinusoids(length: int, d_model: int) -> torch.Tensor:
    """sin on even and cos on odd features, `[length, d_model]`."""
    angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, d_model, 2) / d_model)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(length, d_model)


def attention(block: Parameters, x: torch.Tensor, config: dict) -> torch.Tensor:
    """Causal self-attention of `[batch, length, d_model]`."""
    (batch, length, d_model), n_heads = x.shape, config["n_heads"]
    qkv = x @ block["attention.qkv_weight"] + block["attention.qkv_bias"]
    query, key, value = (part.view(batch, length, n_heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    if config["positions"] == "rotary":
        query, key = turned(query), turned(key)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    mixed = mixed.transpose(1, 2).reshape(batch, length, d_model)
    return mixed @ block["attention.out_weight"] + block["attention.out_bias"]


def turned(heads: torch.Tensor) -> torch.Tensor:
    """`[batch, heads, length, features]`, of which i and i + half turn by the position's angle of frequency i."""
    length, half = heads.shape[2], heads.shape[3] // 2
    angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    x, y = heads.split(half, dim=-1)
    return torch.cat([x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin()], dim=-1)


def feed_forward(block: Parameters, x: torch.Tensor, activation: str) -> torch.Tensor:
    """Two linear maps with a non-linearity between them."""
    hidden = x @ block["feed_forward.weight_in"] + block["feed_forward.bias_in"]
    hidden = F.relu(hidden) if activation == "relu" else F.gelu(hidden, approximate="tanh")
    return hidden @ block["feed_forward.weight_out"] + block["feed_forward.bias_out"]


def layer_norm(p: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    """LayerNorm over the features."""
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.scale"], p[f"{name}.bias"])


if __name__ == "__main__":
    main()
