"""The same model from PyTorch's own layers, trained as its documentation has it."""

import numpy as np
import torch
from torch import nn

from tinygpt_jax.config import Config, ModelConfig


class Transformer(nn.Module):
    """Tokens `[b, t]` to logits `[b, t, v]`: `TransformerEncoderLayer`, post-norm, ReLU, sinusoids, a tied head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(c.d_model, c.n_heads, c.d_ff, c.dropout, "relu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, c.n_layers, enable_nested_tensor=False)
        for layer in self.encoder.layers:
            # The layer would also drop attention weights and hidden features, which the other contestants do not.
            layer.self_attn.dropout = 0.0  # type: ignore[union-attr, assignment]
            layer.dropout = nn.Identity()  # type: ignore[assignment]
        self.dropout = nn.Dropout(c.dropout)
        self.register_buffer("positions", _sinusoids(c.context_length, c.d_model), persistent=False)
        mask = nn.Transformer.generate_square_subsequent_mask(c.context_length)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """A full context."""
        x = self.dropout(self.embedding(tokens) * self.embedding.embedding_dim**0.5 + self.positions)
        x = self.encoder(x, mask=self.mask, is_causal=True)
        return nn.functional.linear(x, self.embedding.weight)


class Trainer:
    """Eager or compiled; on a GPU with bfloat16 autocast. Fused AdamW, which is the fastest of PyTorch's on both."""

    def __init__(self, config: Config, compiled: bool = False) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(config.training.seed)
        self.model = Transformer(config.model).to(self._device)
        self._forward = torch.compile(self.model) if compiled else self.model
        o = config.optimizer
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
        betas = (o.beta1, o.beta2)
        self._optimizer = torch.optim.AdamW(groups, o.learning_rate, betas, o.epsilon, fused=True)
        self._clip_norm = o.clip_norm
        self.n_parameters = sum(p.numel() for p in self.model.parameters())

    def update(self, inputs: np.ndarray, targets: np.ndarray) -> torch.Tensor:
        tokens, words = (torch.from_numpy(x).long().to(self._device, non_blocking=True) for x in (inputs, targets))
        with torch.autocast(self._device, torch.bfloat16, enabled=self._device == "cuda"):
            logits = self._forward(tokens)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), words.flatten())
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self._optimizer.step()
        return loss.detach()


def _sinusoids(length: int, d_model: int) -> torch.Tensor:
    angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, d_model, 2) / d_model)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
