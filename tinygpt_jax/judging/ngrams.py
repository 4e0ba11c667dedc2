"""Which runs of tokens of some stories occur in a corpus, and how often: for corpora of half a billion tokens.

An n-gram is known by a hash of 64 bits, a polynomial over Z / 2^64 of random numbers for its tokens (Karp & Rabin
1987, with tabulated characters), which NumPy computes for a whole chunk of the corpus at once. That is looked up among
the n-grams of the stories, which are few. Two different n-grams have equal hashes with probability 2^-63 or so: for
10^5 n-grams in 10^9 places of a corpus, less than once in 10^4 measurements.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, Integer, UInt64

from tinygpt_jax.terminal import progress

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd
_CHUNK = 2**22  # tokens; working memory is about 50 bytes for each
_TABLE_BITS = 22

Stories = Sequence[Integer[np.ndarray, " length"]]


def hashes(tokens: Integer[np.ndarray, " t"], n: int) -> UInt64[np.ndarray, " m"]:
    """The hash of the n-gram that begins at each place, m = max(0, t - n + 1).

    From those of 1, 2, 4 ... tokens: that of a + b tokens is hash(a) * factor^b + hash(b).
    """
    power, width = _NUMBERS[tokens], 1  # of `width` tokens, at every place where so many are left
    whole, length = None, 0
    while True:
        if n & width:
            whole = power if whole is None else _joined(whole, length, power, width)
            length += width
        if length == n:
            return whole if whole is not None else power
        power, width = _joined(power, width, power, width), 2 * width


def _joined(first: np.ndarray, length: int, second: np.ndarray, width: int) -> np.ndarray:
    """Hashes of `length` tokens, each followed by the hash of `width` tokens behind them."""
    behind = second[length:]
    return first[: len(behind)] * _power(width) + behind


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(int(_FACTOR), exponent, 2**64))


class _Keys:
    """Sorted hashes to look others up in. A table of bits by their first 22 says of most at once that they are not."""

    def __init__(self, keys: UInt64[np.ndarray, " k"]) -> None:
        self.keys = np.unique(keys)
        self._table = np.zeros(2**_TABLE_BITS, bool)
        self._table[self.keys >> np.uint64(64 - _TABLE_BITS)] = True

    def find(self, hashes: UInt64[np.ndarray, " m"]) -> tuple[Int[np.ndarray, " hits"], Int[np.ndarray, " hits"]]:
        """The places of the hashes that are among the keys, and the number of the key of each."""
        places = np.flatnonzero(self._table[hashes >> np.uint64(64 - _TABLE_BITS)])
        if not len(places):
            return places, places
        found = np.minimum(np.searchsorted(self.keys, hashes[places]), len(self.keys) - 1)
        same = self.keys[found] == hashes[places]
        return places[same], found[same]


def counts(corpus: Integer[np.ndarray, " t"], keys: UInt64[np.ndarray, " k"], n: int) -> Int[np.ndarray, " k"]:
    """How often the n-grams of these hashes occur in a corpus."""
    lookup = _Keys(keys)
    total = np.zeros(len(lookup.keys), np.int64)
    for chunk in _chunks(corpus, n - 1):
        total += np.bincount(lookup.find(hashes(chunk, n))[1], minlength=len(total))
    return total[np.searchsorted(lookup.keys, keys)]


def match_lengths(
    corpus: Integer[np.ndarray, " t"], stories: Stories, shortest: int, whole_from: int
) -> list[Int[np.ndarray, " length"]]:
    """For each place of each story, how many of the tokens from there on stand together somewhere in the corpus.

    Args:
        corpus: tokens of stories with an end-of-text behind each; the stories here have none, so that no run of
            theirs is found across the end of one.
        stories: their tokens.
        shortest: runs shorter than this count as 0.
        whole_from: runs are followed to their ends where they have at least so many tokens; a shorter one counts as
            `shortest`. That takes much less time, because short runs are found all over the corpus.
    """
    tokens = np.concatenate([np.empty(0, np.int64), *stories])
    left = np.concatenate([np.empty(0, np.int64), *(np.arange(len(story), 0, -1) for story in stories)])
    best = np.zeros(len(tokens), np.int64)
    short = np.flatnonzero(left >= shortest)  # places whose run of `shortest` was not found yet
    long = np.flatnonzero(left >= whole_from)
    short_hashes, long_hashes = (_at(tokens, places, n) for places, n in ((short, shortest), (long, whole_from)))
    lookup = _Keys(long_hashes)
    for chunk in progress(_chunks(corpus, _most(left)), "comparing", -(-len(corpus) // _CHUNK)):
        if len(short):
            keys = _Keys(short_hashes)
            hit = keys.find(hashes(chunk, shortest))[1]
            found = np.isin(short_hashes, keys.keys[np.unique(hit)])
            best[short[found]] = np.maximum(best[short[found]], shortest)
            short, short_hashes = short[~found], short_hashes[~found]
        starts, hit = lookup.find(hashes(chunk, whole_from))
        is_met = np.isin(long_hashes, lookup.keys[np.unique(hit)])
        _follow(chunk, starts, lookup.keys[hit], tokens, long[is_met], long_hashes[is_met], left, best, whole_from)
    return np.split(best, np.cumsum([len(story) for story in stories])[:-1])


def _follow(
    chunk: np.ndarray,
    starts: np.ndarray,
    chunk_hashes: np.ndarray,
    tokens: np.ndarray,
    places: np.ndarray,
    place_hashes: np.ndarray,
    left: np.ndarray,
    best: np.ndarray,
    length: int,
) -> None:
    """Note in `best` how far runs of `length` tokens go on alike in the chunk (from `starts`) and in the stories."""
    while len(places):
        best[places] = np.maximum(best[places], length)
        going_on = left[places] > length
        places, place_hashes = places[going_on], place_hashes[going_on]
        inside = starts + length < len(chunk)
        starts, chunk_hashes = starts[inside], chunk_hashes[inside]
        place_hashes = place_hashes * _FACTOR + _NUMBERS[tokens[places + length]]
        chunk_hashes = chunk_hashes * _FACTOR + _NUMBERS[chunk[starts + length]]
        is_met = np.isin(place_hashes, chunk_hashes)
        places, place_hashes = places[is_met], place_hashes[is_met]
        alive = np.isin(chunk_hashes, place_hashes)
        starts, chunk_hashes = starts[alive], chunk_hashes[alive]
        length += 1


def _at(tokens: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    found = hashes(tokens, n)
    return found[places[places < len(found)]]


def _most(left: np.ndarray) -> int:
    return int(left.max(initial=1)) - 1


def _chunks(corpus: np.ndarray, overlap: int) -> Iterator[np.ndarray]:
    """The corpus in pieces, each with the first `overlap` tokens of the next, so that no run is cut."""
    for first in range(0, len(corpus), _CHUNK):
        yield np.asarray(corpus[first : first + _CHUNK + overlap])


def _numbers() -> UInt64[np.ndarray, " 65536"]:
    return np.random.default_rng(0).integers(0, 2**64, 2**16, np.uint64)


_NUMBERS = _numbers()
