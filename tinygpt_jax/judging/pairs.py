"""Minimal pairs of texts in the words of TinyStories, after Warstadt et al. 2020 (BLiMP): made from `pairs.toml`.

A model gets a point for a pair if the right text has strictly the higher log-probability.
"""

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from tinygpt_jax.judging.figures import Row, Section
from tinygpt_jax.tokenizer import Tokenizer, gpt2

TEMPLATES = Path(__file__).with_name("pairs.toml")
PER_KIND = 128


class Pair(NamedTuple):
    """Two texts that differ in one place."""

    kind: str
    right: str
    wrong: str


def make_pairs(seed: int = 0, per_kind: int = PER_KIND, path: Path = TEMPLATES) -> list[Pair]:
    """The pairs of all kinds, `per_kind` of each, no two alike; always the same ones for a seed."""
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    words = {name: spec.split(", ") for name, spec in told["words"].items()}
    pairs: dict[Pair, None] = {}
    for kind in told["kinds"]:
        choices = random.Random(f"{seed} {kind['name']}")
        wanted, turn = len(pairs) + per_kind, 0
        while len(pairs) < wanted:
            template, turn = kind["templates"][turn // 2 % len(kind["templates"])], turn + 1
            pairs[Pair(kind["name"], *_texts(_filled(template, words, choices), turn % 2))] = None
            if turn > 100 * per_kind:
                raise ValueError(f"the templates of {kind['name']} make fewer than {per_kind} different pairs")
    return list(pairs)


def meanings(path: Path = TEMPLATES) -> dict[str, str]:
    """What each kind of pairs asks."""
    return {kind["name"]: kind["means"] for kind in tomllib.loads(path.read_text(encoding="utf-8"))["kinds"]}


def all_in_vocabulary(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> Bool[np.ndarray, " pairs"]:
    """Which pairs the tokenizer writes in whole tokens, as GPT-2's does, and spells no word of in bytes."""

    def is_whole(text: str) -> bool:
        return tokenizer.kept[tokenizer.encode(text)].tolist() == gpt2().encode(text)

    return np.array([is_whole(pair.right) and is_whole(pair.wrong) for pair in pairs])


def pair_section(
    pairs: Sequence[Pair], scores: Mapping[str, tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]]
) -> Section:
    """The share of points of several models, over all pairs and over those of each kind.

    Args:
        pairs: those that count.
        scores: the log-probabilities of the right texts and of the wrong ones, by the name of a model.
    """
    kinds = np.array([pair.kind for pair in pairs])
    points = {name: right > wrong for name, (right, wrong) in scores.items()}

    def row(name: str, chosen: np.ndarray, means: str) -> Row:
        cells = {model: float(points[model][chosen].mean()) for model in points} | {"chance": 0.5}
        noise = f"{0.5 / np.sqrt(chosen.sum()):.1%}"
        return Row(name, cells | {"noise of chance": noise, "pairs": f"{chosen.sum():,}"}, "share", means)

    rows = [row("all pairs", np.ones(len(pairs), bool), "the right text of two is strictly the likelier one")]
    rows += [row(kind, kinds == kind, means) for kind, means in meanings().items() if (kinds == kind).any()]
    return Section("pairs", "share of minimal pairs of which the model finds the right one the likelier", rows)


def _filled(template: str, words: Mapping[str, Sequence[str]], choices: random.Random) -> str:
    """The template with words in its slots: {color} and {color2} are different ones of a list, {color} always one."""
    used: dict[str, str] = {}
    for slot in re.findall(r"\{(\w+)\}", template):
        if slot not in used:
            used[slot] = choices.choice([w for w in words[slot.rstrip("0123456789")] if w not in used.values()])
    return re.sub(r"\{(\w+)\}", lambda slot: used[slot[1]], template)


def _texts(filled: str, option: int) -> tuple[str, str]:
    """The right text, with this option of every bracket, and the wrong one, with another in the last bracket."""
    parts = re.split(r"\[([^]]*)\]", filled)  # texts at even places, brackets between them
    brackets = [part.split("|") for part in parts[1::2]]
    if len(brackets) < 2 or {len(options) for options in brackets} != {2}:
        raise ValueError(f"at least two brackets of two options are needed: {filled}")
    right = [options[option] for options in brackets]
    wrong = [*right[:-1], brackets[-1][1 - option]]
    return _joined(parts[::2], right), _joined(parts[::2], wrong)


def _joined(texts: Sequence[str], options: Sequence[str]) -> str:
    return "".join(text + option for text, option in zip(texts, [*options, ""], strict=True))
