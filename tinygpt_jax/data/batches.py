"""Batches of rows of tokens: a pure function of the corpus, the seed and the step.

On disk a split is one array of tokens, in which an end-of-text follows every story. A row's targets are a run of
that array: of one story where rows are `padded`, of whatever comes next where they are `packed`. Its inputs are
the targets one place later, behind the token that comes before the run, which is an end-of-text at the start of
every story. So the first token of a story is predicted too, and an empty prompt starts a story.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from tinygpt_jax.data.corpus import Split
from tinygpt_jax.errors import UserError

Layout = Literal["padded", "packed"]

_GOLDEN_SECTION = (5**0.5 - 1) / 2


class Batch(NamedTuple):
    """What a model reads, what it should say at each place, and which places count in the loss."""

    inputs: Int[Any, "rows context_length"]
    targets: Int[Any, "rows context_length"]
    mask: Bool[Any, "rows context_length"]


class Rows:
    """All rows of a split in one layout.

    `padded`: one story a row, cut or padded to the context; padding is not in the loss.
    `packed`: all stories end to end, cut into rows; every token is a target once, and only the last row is padded.
    """

    def __init__(self, split: Split, layout: Layout, context_length: int, end_of_text: int) -> None:
        self.tokens, self.offsets = split.tokens, split.offsets
        self.layout, self.context_length, self.end_of_text = layout, context_length, end_of_text

    def __len__(self) -> int:
        if self.layout == "padded":
            return len(self.offsets) - 1
        return -(-len(self.tokens) // self.context_length)

    def __getitem__(self, index: int) -> Batch:
        """Row `index`, without the axis of rows."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return Batch(*(array[0] for array in self.take(np.array([index]))))

    def take(self, indices: Int[np.ndarray, " rows"], shift: Int[np.ndarray, " rows"] | int = 0) -> Batch:
        """The rows of these numbers, in their order; each `shift` tokens further on, from the end back to the start."""
        places = np.arange(self.context_length)
        starts, stops = self._runs(indices)
        mask = starts[:, None] + places < stops[:, None]
        # Before the first token stands the last, which is an end-of-text as before every other story.
        first, around = starts + shift, len(self.tokens)
        targets = np.full(mask.shape, self.end_of_text, np.int32)
        targets[mask] = self.tokens[((first[:, None] + places) % around)[mask]]
        inputs = np.empty_like(targets)
        inputs[:, 1:] = targets[:, :-1]
        inputs[:, 0] = self.tokens[(first - 1) % around]
        return Batch(inputs, targets, mask)

    def targets_kept(self) -> int:
        """How many of the split's tokens are a target in an epoch; `padded` loses what is cut off."""
        if self.layout == "packed":
            return len(self.tokens)
        return int(np.minimum(np.diff(self.offsets), self.context_length).sum())

    def padding_share(self) -> float:
        """Share of all places in all rows that hold padding."""
        return 1 - self.targets_kept() / max(1, len(self) * self.context_length)

    def _runs(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each row's targets start and stop in `tokens`."""
        if self.layout == "padded":
            return self.offsets[indices], self.offsets[indices + 1]
        starts = indices.astype(np.int64) * self.context_length
        return starts, np.full_like(starts, len(self.tokens))


class TrainingBatches:
    """`batches[step]`, for any step: the rows of one epoch after another, shuffled anew in each.

    A batch that reaches past the end of an epoch goes on with the next one. Nothing is kept in memory: Grain's
    index shuffle is a permutation that is computed place by place.

    With `recut`, the (packed) rows of epoch i begin a share of the context later that is i times the golden section:
    the shares of any number of epochs are spread evenly.

    A process that has some of the devices takes the rows of each batch whose places are in `share` (default: all).

    Raises:
        UserError: there are fewer rows than a batch.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int, share: range | None = None, recut: bool = False) -> None:
        from grain.experimental import index_shuffle  # imports jax, which looking at rows does not need

        if len(rows) < batch_size:
            raise UserError(
                f"the training stories make {len(rows)} {rows.layout} rows of {rows.context_length} tokens, fewer than "
                f"one batch of {batch_size}: give more stories, or a smaller --batch-size or --context-length"
            )
        self.rows, self.batch_size, self.seed, self.share = rows, batch_size, seed, share or range(batch_size)
        self.recut, self._index_shuffle = recut, index_shuffle

    @property
    def per_epoch(self) -> float:
        """Batches in one epoch."""
        return len(self.rows) / self.batch_size

    def __getitem__(self, step: int) -> Batch:
        places = step * self.batch_size + np.array(self.share)
        shift = self._shift(places // len(self.rows)) if self.recut else 0
        return self.rows.take(np.array([self._shuffled(place) for place in places.tolist()]), shift)

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """`batches[start_step]`, `batches[start_step + 1]` and so on for ever, prepared ahead by threads."""
        import grain

        steps = grain.MapDataset.range(start_step, 2**62).map(self.__getitem__)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    def _shift(self, epochs: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        return (epochs * _GOLDEN_SECTION % 1 * self.rows.context_length).astype(np.int64)

    def _shuffled(self, place: int) -> int:
        """Which row stands at `place` when the epochs' shuffled rows are written one after another."""
        epoch, place = divmod(place, len(self.rows))
        # 0x9E3779B1 is odd, so that no two epochs of a seed have the same order; and far from 1, so that the second
        # epoch of a seed is not the first of the next.
        order = (self.seed + 0x9E3779B1 * epoch) % 2**32
        return self._index_shuffle(place, max_index=len(self.rows) - 1, seed=order, rounds=4)


class EvaluationBatches:
    """Every row once and in order, in batches of one shape: the last is filled up with masked rows.

    With `limit`, at most that many batches, of rows that are evenly spaced; always the same ones. `share` as in
    `TrainingBatches`.
    """

    def __init__(self, rows: Rows, batch_size: int, limit: int | None = None, share: range | None = None) -> None:
        self.rows, self.batch_size, self.share = rows, batch_size, share or range(batch_size)
        self.n_rows = len(rows) if limit is None else min(len(rows), limit * batch_size)

    def __len__(self) -> int:
        return -(-self.n_rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.n_rows, self.batch_size):
            places = first + np.array(self.share)
            chosen = places[places < self.n_rows]
            batch = self.rows.take(chosen * len(self.rows) // self.n_rows)
            missing, fill = ((0, len(places) - len(chosen)), (0, 0)), self.rows.end_of_text
            inputs, targets = (np.pad(tokens, missing, constant_values=fill) for tokens in batch[:2])
            yield Batch(inputs, targets, np.pad(batch.mask, missing))
