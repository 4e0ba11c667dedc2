"""The face of the package: `tinygpt_jax.load` and what it returns. docs/library.md shows it at work."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from tinygpt_jax.config import Sampling
from tinygpt_jax.evaluation import text_losses
from tinygpt_jax.exchange import open_model
from tinygpt_jax.generation import generate
from tinygpt_jax.training import checkpoint


class TokenLosses(NamedTuple):
    """What `Run.loss` returns."""

    tokens: list[str]  # the text of each; bytes that are half a character are shown as U+FFFD
    nats: Float[np.ndarray, " n"]  # -ln p(token), given what stands before it


@dataclass(frozen=True)
class Run(checkpoint.Run):
    """A trained model: `params` is a pytree, `model` a Flax module, and `tokenizer` its vocabulary.

    `model.apply({"params": params}, tokens)` are its logits.
    """

    def __repr__(self) -> str:
        model, count = self.config.model, sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"Run({count:,} parameters, n_layers={model.n_layers}, vocabulary of {self.tokenizer.vocab_size:,} tokens, "
            f"step {self.step:,})"
        )

    def generate(
        self,
        prompt: str = "",
        *,
        temperature: float = Sampling.temperature,
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        repetition_penalty: float = Sampling.repetition_penalty,
        max_new_tokens: int = 256,
        seed: int = 0,
    ) -> str:
        """A story that begins with the prompt: the one that `experiments.generate` writes with these settings.

        Raises:
            UsageError: a setting is out of its range.
        """
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
        model = (self.model, self.params, self.tokenizer)
        [story] = generate(*model, [prompt], sampling, max_new_tokens=max_new_tokens, seed=seed)
        return story.prompt + story.text

    def loss(self, text: str) -> TokenLosses:
        """How unexpected each token of a text is, read from its beginning as a story: `nats.mean()` is the loss."""
        ids, nats = text_losses(self.model, self.params, self.tokenizer, text)
        return TokenLosses([self.tokenizer.decode([token]) for token in ids], nats)


def load(source: str | Path) -> Run:
    """Open a run (its best checkpoint), an exported model, or a GPT-2, on the device that JAX runs on.

    Args:
        source: a folder, or whatever else `exchange.open_model` takes.

    Raises:
        UserError: it is no model, or is damaged.
    """
    return Run(**vars(open_model(source)))
