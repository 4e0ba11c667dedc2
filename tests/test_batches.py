"""Rows and batches: nothing lost, nothing twice, and the same batch at a step whoever asks."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt_jax.data.batches import EvaluationBatches, Rows, TrainingBatches
from tinygpt_jax.data.corpus import Split
from tinygpt_jax.errors import UserError

END = 99


def split_of(stories):
    """A split of stories given as lists of token ids."""
    tokens = np.array([token for story in stories for token in [*story, END]], np.uint16)
    offsets = np.cumsum([0, *(len(story) + 1 for story in stories)])
    return Split(tokens, offsets, n_bytes=0, entropy=None)


def numbered(count, length=3):
    """Stories whose tokens are all different."""
    return split_of(np.arange(count * length).reshape(count, length) % 60_000 + 100)


def arrays(batch):
    return [array.tolist() for array in batch]


def test_padded_rows_by_hand():
    """An off-by-one between inputs and targets, a story without its end, or padding in the loss."""
    rows = Rows(split_of([[1, 2], [3, 4, 5, 6, 7]]), "padded", 4, END)
    assert len(rows) == 2
    assert arrays(rows[0]) == [[END, 1, 2, END], [1, 2, END, END], [True, True, True, False]]
    assert arrays(rows[1]) == [[END, 3, 4, 5], [3, 4, 5, 6], [True, True, True, True]]
    assert rows.targets_kept() == 7 and rows.padding_share() == 1 / 8


def test_packed_rows_by_hand():
    """The token between two rows not predicted, or a first token that is."""
    rows = Rows(split_of([[1, 2], [3, 4, 5, 6, 7]]), "packed", 4, END)
    assert len(rows) == 3
    assert arrays(rows[0]) == [[END, 1, 2, END], [1, 2, END, 3], [True] * 4]
    assert arrays(rows[1]) == [[3, 4, 5, 6], [4, 5, 6, 7], [True] * 4]
    assert arrays(rows[2]) == [[7, END, END, END], [END, END, END, END], [True, False, False, False]]
    assert rows.targets_kept() == 9 and rows.padding_share() == 3 / 12


stories_strategy = st.lists(st.lists(st.integers(0, END - 1), min_size=1, max_size=12), min_size=1, max_size=12)


@settings(deadline=None)  # other work on the machine is no failure
@given(stories_strategy, st.integers(1, 15))
def test_layouts_conserve_tokens(stories, context_length):
    """`packed`: a token lost or learned twice. `padded`: more lost than what is beyond the context."""
    split = split_of(stories)
    packed, padded = (Rows(split, layout, context_length, END) for layout in ("packed", "padded"))
    batch = packed.take(np.arange(len(packed)))
    np.testing.assert_array_equal(batch.targets[batch.mask], split.tokens)
    batch = padded.take(np.arange(len(padded)))
    kept = [[*story, END][:context_length] for story in stories]
    assert batch.targets[batch.mask].tolist() == list(itertools.chain(*kept))
    for rows in (packed, padded):
        batch = rows.take(np.arange(len(rows)))
        # Each input is the target before it, also over the edge of a packed row.
        np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        before = np.concatenate([[END], split.tokens])[rows._runs(np.arange(len(rows)))[0]]
        np.testing.assert_array_equal(batch.inputs[:, 0], before)
        assert (batch.targets[~batch.mask] == END).all()
        assert rows.targets_kept() == batch.mask.sum()
        assert rows.padding_share() == pytest.approx(1 - batch.mask.mean())
        assert [array.dtype for array in batch] == [np.int32, np.int32, bool]


def test_a_row_beyond_the_last_is_an_error():
    """A loop over rows that never ends."""
    rows = Rows(numbered(3), "padded", 4, END)
    assert len(list(rows)) == 3
    with pytest.raises(IndexError):
        rows[-1]


def training(split, layout="padded", batch_size=4, seed=0):
    return TrainingBatches(Rows(split, layout, 4, END), batch_size, seed)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@settings(max_examples=20, deadline=None)
@given(count=st.integers(4, 40), batch_size=st.integers(1, 4), seed=st.integers(0, 2**31 - 1))
def test_an_epoch_has_every_row_once(layout, count, batch_size, seed):
    """Stories that are never learned, or twice as often as others."""
    batches = training(numbered(count), layout, batch_size, seed)
    n_rows = len(batches.rows)
    assert batches.per_epoch == n_rows / batch_size
    needed = -(-2 * n_rows // batch_size)
    targets = np.concatenate([batches[step].targets for step in range(needed)])
    everything = sorted(map(bytes, batches.rows.take(np.arange(n_rows)).targets))
    for epoch in range(2):
        assert sorted(map(bytes, targets[epoch * n_rows : (epoch + 1) * n_rows])) == everything


def test_recut_rows_by_hand():
    """Rows that run past the last token, or forget what is before the first."""
    rows = Rows(split_of([[1, 2], [3, 4, 5, 6, 7]]), "packed", 4, END)
    batch = rows.take(np.arange(3), np.array([0, 2, 3]))
    assert arrays(batch)[0] == [[END, 1, 2, END], [5, 6, 7, END], [2, END, END, END]]
    assert arrays(batch)[1] == [[1, 2, END, 3], [6, 7, END, 1], [END, END, END, END]]
    assert arrays(batch)[2] == [[True] * 4, [True] * 4, [True, False, False, False]]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(4, 40), batch_size=st.integers(1, 4), seed=st.integers(0, 2**31 - 1))
def test_recut_epochs_have_every_token_once_in_other_rows(count, batch_size, seed):
    """A token that is lost or learned twice where epochs are cut; rows that are the same in each epoch."""
    split = numbered(count)
    plain, recut = (
        TrainingBatches(Rows(split, "packed", 4, END), batch_size, seed, recut=recut) for recut in (False, True)
    )
    n_rows = len(recut.rows)
    batches = [recut[step] for step in range(-(-4 * n_rows // batch_size))]
    inputs, targets, mask = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    starts = []
    for epoch in range(4):
        rows = slice(epoch * n_rows, (epoch + 1) * n_rows)
        assert sorted(targets[rows][mask[rows]]) == sorted(split.tokens)
        starts.append({*targets[rows][:, 0].tolist()})
    assert starts[0] == {*plain.rows.take(np.arange(n_rows)).targets[:, 0].tolist()}
    assert len(set(map(frozenset, starts))) == 3  # of four: rows of 4 tokens can be cut in four ways, 0, 2, 0, 3
    follows = dict(zip(split.tokens.tolist(), np.roll(split.tokens, 1).tolist(), strict=True)) | {END: None}
    for row_inputs, row_targets in zip(inputs[:, 0].tolist(), targets[:, 0].tolist(), strict=True):
        assert row_targets == END or follows[row_targets] == row_inputs


def test_the_order_is_of_the_seed_and_new_in_each_epoch():
    """A shuffle that forgets its seed, or repeats itself; seed 1 starting with the second epoch of seed 0."""
    split = numbered(400)

    def order(seed, epoch):
        batches = training(split, batch_size=400, seed=seed)
        return batches[epoch].targets[:, 0].tolist()

    assert order(0, 0) == order(0, 0)
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len(set(map(tuple, orders))) == 9
    # Neighbours stay neighbours no more often than in a random order: 1.9 pairs of 399 expected.
    assert all(np.sum(np.diff(one) == 3) < 12 for one in orders)


def test_iterating_from_a_step_is_random_access():
    """A resumed run that sees other batches than one that was not interrupted."""
    batches = training(numbered(50), "packed")
    for start in (0, 5, 10**9):
        for step, batch in zip(range(start, start + 20), batches.iterate(start), strict=False):
            assert arrays(batch) == arrays(batches[step])


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_corpus_smaller_than_a_batch_is_refused(layout):
    """A run that starts, and shows the model the same few rows again and again in every batch."""
    with pytest.raises(UserError, match=f"3 {layout} rows of 4 tokens, fewer than one batch of 4") as caught:
        training(numbered(3), layout)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("count", [1, 8, 11])
def test_evaluation_has_every_row_once_in_one_shape(layout, count):
    """A last batch of another shape, compiled for minutes; a filled-up row that counts."""
    rows = Rows(numbered(count), layout, 4, END)
    batches = EvaluationBatches(rows, 4)
    assert len(batches) == -(-len(rows) // 4) == len(list(batches))
    assert {batch.inputs.shape for batch in batches} == {(4, 4)}
    targets = np.concatenate([batch.targets[batch.mask] for batch in batches])
    batch = rows.take(np.arange(len(rows)))
    np.testing.assert_array_equal(targets, batch.targets[batch.mask])


def test_a_limit_takes_evenly_spaced_rows():
    """A validation loss of the first stories only, or of other ones each time."""
    batches = EvaluationBatches(Rows(numbered(100), "padded", 4, END), 5, limit=4)
    first = [int(row[0] - 100) // 3 for batch in batches for row in batch.targets]
    assert first == list(range(0, 100, 5))
    assert len(EvaluationBatches(Rows(numbered(7), "padded", 4, END), 5, limit=4)) == 2


def test_a_split_of_half_a_billion_tokens_opens_and_feeds_in_little_memory(tmp_path):
    """Reading the offsets or shuffling a list of rows into memory at every start."""
    tokens, stories = 500_000_000, 2_500_000
    with (tmp_path / "tokens").open("wb") as file:
        file.truncate(2 * tokens)  # a hole: it takes no space on the disk
    offsets = np.lib.format.open_memmap(tmp_path / "offsets", "w+", np.int64, (stories + 1,))
    offsets[:] = np.arange(stories + 1) * (tokens // stories)
    split = Split(
        np.asarray(np.memmap(tmp_path / "tokens", "<u2", "r")), np.load(tmp_path / "offsets", mmap_mode="r"), 0, None
    )
    for layout in ("padded", "packed"):
        batches = TrainingBatches(Rows(split, layout, 128, END), 32, 0)
        assert batches[10**6].inputs.shape == (32, 128)
        assert not [name for name, value in vars(batches).items() if isinstance(value, (list, np.ndarray))]
