"""The same model in PyTorch, trained as one who knows PyTorch well would train it."""

import numpy as np
import torch
from torch import nn

from tinygpt_jax.config import Config, ModelConfig


class Block(nn.Module):
    """Post-norm, ReLU. One product for queries, keys and values, and PyTorch's own attention kernels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config
        self.n_heads = c.n_heads
        self.qkv, self.out = nn.Linear(c.d_model, 3 * c.d_model), nn.Linear(c.d_model, c.d_model)
        self.feed_forward = nn.Sequential(nn.Linear(c.d_model, c.d_ff), nn.ReLU(), nn.Linear(c.d_ff, c.d_model))
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(c.d_model), nn.LayerNorm(c.d_model)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One layer, `[b, t, d]` to `[b, t, d]`."""
        heads = self.qkv(x).unflatten(-1, (3 * self.n_heads, -1)).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=1)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = self.attention_norm(x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2))))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Transformer(nn.Module):
    """Tokens and the next ones, each `[b, t]` with a full context, to their mean loss: sinusoids, a tied head."""

    def __init__(self, config: ModelConfig, vocab_multiple: int = 1) -> None:
        super().__init__()
        c = config
        self.n_padding = -c.vocab_size % vocab_multiple * c.d_model  # parameters of tokens that do not exist
        self.embedding = nn.Embedding(-(-c.vocab_size // vocab_multiple) * vocab_multiple, c.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(c) for _ in range(c.n_layers)))
        self.dropout = nn.Dropout(c.dropout)
        self.register_buffer("positions", _sinusoids(c.context_length, c.d_model), persistent=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss is computed here so that `torch.compile` sees it together with the logits."""
        x = self.dropout(self.embedding(tokens) * self.embedding.embedding_dim**0.5 + self.positions)
        logits = nn.functional.linear(self.blocks(x), self.embedding.weight)
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Trainer:
    """Eager or compiled, with fused AdamW, which is the fastest of PyTorch's.

    On a GPU with bfloat16 autocast, TF32 for what stays float32, pinned batches, and a vocabulary that is a multiple of
    64, which its matrix units need to be fast.
    """

    def __init__(self, config: Config, compiled: bool = False) -> None:
        self._gpu = torch.cuda.is_available()
        self._device = "cuda" if self._gpu else "cpu"
        if self._gpu:
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(config.training.seed)
        self.model = Transformer(config.model, vocab_multiple=64 if self._gpu else 1).to(self._device)
        self._loss = torch.compile(self.model) if compiled else self.model
        o = config.optimizer
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
        betas = (o.beta1, o.beta2)
        self._optimizer = torch.optim.AdamW(groups, o.learning_rate, betas, o.epsilon, fused=True)
        self._clip_norm = o.clip_norm
        self.n_parameters = sum(p.numel() for p in self.model.parameters()) - self.model.n_padding

    def update(self, inputs: np.ndarray, targets: np.ndarray) -> torch.Tensor:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._gpu):
            loss = self._loss(self._put(inputs), self._put(targets))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self._optimizer.step()
        return loss.detach()

    def _put(self, tokens: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(tokens).long()
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._gpu else tensor


def _sinusoids(length: int, d_model: int) -> torch.Tensor:
    angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, d_model, 2) / d_model)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
