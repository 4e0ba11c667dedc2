"""What may be shown on a terminal, and how far a long piece of work is."""

import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_EVERY = 60.0  # seconds between the lines of `progress`


def harmless(text: str) -> str:
    """Text without what a terminal would take for a command, such as ESC."""
    return "".join(letter if letter in "\n\t" or unicodedata.category(letter) != "Cc" else "\ufffd" for letter in text)


def progress(
    items: Iterable[Item],
    doing: str,
    total: int | None = None,
    *,
    count: Callable[[Item], int] = lambda item: 1,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """The items, and on standard error how far they are: a bar on a terminal, elsewhere a line a minute.

    Args:
        items: what is done one after the other.
        doing: what the lines begin with, "evaluating".
        total: how many there are, where `items` has no length.
        count: for how many an item counts.
        clock: gives the time in seconds.
    """
    from tqdm import tqdm

    start = said = clock()
    done = 0
    with tqdm(items, desc=doing, total=total, leave=False, disable=None, dynamic_ncols=True, delay=0.5) as bar:
        for item in items:
            if bar.disable and (now := clock()) - said >= _EVERY:
                said, left = now, ""
                if bar.total and done:
                    left = f" of {bar.total:,}, {duration((bar.total - done) * (now - start) / done)} left"
                print(f"{doing}: {done:,}{left}", file=sys.stderr, flush=True)
            yield item
            done += count(item)
            bar.update(count(item))


def duration(seconds: float) -> str:
    """For example 2m05s, or 3h10m."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
