"""How far a model's next-token distribution is from the true one, which the grammar of the built-in stories knows.

    KL(true || model) = sum over tokens of p(token) (ln p(token) - ln q(token)), in nats

at each token of held-out stories, given the story up to there. Its mean over stories is the model's loss above the
exact entropy (Cover & Thomas 2006, 2.3), without the noise of which token came.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tinygpt_jax.data.grammar import Kind
from tinygpt_jax.judging.figures import Row, Section
from tinygpt_jax.judging.reading import END, Step, Storyteller
from tinygpt_jax.judging.scoring import log_probabilities
from tinygpt_jax.model import GPT
from tinygpt_jax.tokenizer import Tokenizer

_KINDS: dict[Kind, str] = {
    "turn": "the story takes one of several turns, such as how a plot goes on or what somebody says",
    "new word": "a word is chosen from a list, such as a name or a colour",
    "kept word": "a word that was said before is due again, such as the hero's name",
    "implied word": "a word follows from another one, such as she from girl",
    "fixed text": "only one token is possible, whatever the story tells",
}
_FIRST_POSITIONS = (0, 8, 16, 32, 64, 96)


class TrueNext(NamedTuple):
    """The true distribution of the next token at n places of stories, over at most k tokens."""

    stories: list[list[int]]  # tokens, each story with its end-of-text: n in all
    candidates: Int[np.ndarray, "n k"]
    p: Float[np.ndarray, "n k"]  # 0 where there are fewer than k, and in all of a row that does not count
    kinds: list[Kind]  # of each place
    positions: Int[np.ndarray, " n"]  # how many tokens stand before it in its story


def true_next(storyteller: Storyteller, tokenizer: Tokenizer, texts: Sequence[str]) -> TrueNext:
    """The true distributions at every token of stories that the grammar can tell, their ends included.

    Raises:
        ValueError: it cannot tell one.
    """
    spelled: dict[str, list[int]] = {END: [tokenizer.end_of_text]}
    stories, distributions, kinds = [], [], []
    for text in texts:
        reading = storyteller.read(text)
        if reading.left is not None:
            raise ValueError(f"no story of the grammar: {text[:80]!r}")
        tokens, true, decided = zip(*_tokens_of(reading.steps, spelled, tokenizer), strict=True)
        stories.append(list(tokens))
        distributions += true
        kinds += decided
    most = max(map(len, distributions))
    candidates, p = np.zeros((len(distributions), most), np.int64), np.zeros((len(distributions), most))
    for row, distribution in enumerate(distributions):
        candidates[row, : len(distribution)] = list(distribution)
        p[row, : len(distribution)] = list(distribution.values())
    return TrueNext(stories, candidates, p, kinds, np.concatenate([np.arange(len(story)) for story in stories]))


def _tokens_of(
    steps: Sequence[Step], spelled: dict[str, list[int]], tokenizer: Tokenizer
) -> Iterator[tuple[int, dict[int, float], Kind]]:
    """Each token of a story, the probabilities of the tokens that could have stood in its place, and its kind.

    The distribution is empty behind tokens that may be a whole piece or the beginning of another one: what follows
    then belongs to two pieces. With GPT-2's tokens that never happens here; it may where they are spelled in bytes.
    """
    is_open = False
    for step in steps:
        for piece in step.possible.keys() - spelled.keys():
            spelled[piece] = tokenizer.encode(piece)
        possible = [(spelled[piece], p) for piece, p in step.possible.items()]
        for place, token in enumerate(spelled[step.piece]):
            total, distribution = sum(p for _, p in possible), {}
            for tokens, p in possible:
                distribution[tokens[place]] = distribution.get(tokens[place], 0.0) + p / total
            is_certain = len(distribution) == 1 and step.kind in ("turn", "new word")
            yield token, {} if is_open else distribution, "fixed text" if is_certain else step.kind
            same = [(tokens, p) for tokens, p in possible if tokens[place] == token]
            possible = [(tokens, p) for tokens, p in same if len(tokens) > place + 1]
            is_open = 0 < len(possible) < len(same)


def divergences(model: GPT, params: Any, true: TrueNext, end_of_text: int) -> Float[np.ndarray, " n"]:
    """KL(true || model) in nats at each place."""
    log_q = log_probabilities(model, params, true.stories, true.candidates, end_of_text).astype(np.float64)
    return np.sum(true.p * (np.log(np.where(true.p > 0, true.p, 1.0)) - log_q), axis=1)


def divergence_section(kl: Float[np.ndarray, " n"], true: TrueNext) -> Section:
    """Means over all places, over those of each kind, and by position."""
    entropy = -np.sum(true.p * np.log(np.where(true.p > 0, true.p, 1.0)), axis=1)
    kinds, counts = np.array(true.kinds), true.p.any(axis=1)
    total = kl.sum()

    def row(name: str, chosen: np.ndarray, means: str) -> Row:
        chosen = chosen & counts
        cells = {
            "KL": float(kl[chosen].mean()),
            "exact entropy": float(entropy[chosen].mean()),
            "share of all KL": f"{kl[chosen].sum() / total:.1%}" if total > 0 else None,
            "tokens": f"{chosen.sum():,}",
        }
        return Row(name, cells, "nats", means)

    rows = [row("all tokens", np.ones(len(kl), bool), "the loss above the exact entropy, on these stories")]
    rows += [row(kind, kinds == kind, means) for kind, means in _KINDS.items() if (counts & (kinds == kind)).any()]
    for first, last in zip(_FIRST_POSITIONS, [*_FIRST_POSITIONS[1:], None], strict=True):
        chosen = (true.positions >= first) & (true.positions < (last or len(kl)))
        if (chosen & counts).any():
            name = f"tokens {first + 1} to {last}" if last else f"tokens from {first + 1}"
            rows.append(row(name, chosen, "of each story"))
    return Section(
        "divergence",
        f"KL(true || model) of the next token in {len(true.stories)} held-out stories, in nats: 0 is the storyteller",
        rows,
    )
