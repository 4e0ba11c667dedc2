"""Which checkpoints of a run stay: the newest two and the best, or some of the whole run besides."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tinygpt_jax.runs.checkpoint_files import checkpoints

MOST = 12  # of a run that keeps some of all, besides the newest two and the best


def remove_old(workdir: Path, keep_some_of_all: bool) -> None:
    """Remove the checkpoints that are neither among the newest two nor the best, nor else to be kept."""
    found = checkpoints(workdir)
    best = min(reversed(found), key=lambda checkpoint: checkpoint.validation_loss)
    kept = {best.step, *(checkpoint.step for checkpoint in found[-2:])}
    if keep_some_of_all:
        kept |= {*thinned([checkpoint.step for checkpoint in found], MOST)}
    for checkpoint in found:
        if checkpoint.step not in kept:
            # Under another name first: a kill in the middle must not leave half a checkpoint under a complete one's.
            leaving = checkpoint.folder.with_name(f".removing-{checkpoint.folder.name}")
            checkpoint.folder.rename(leaving)
            shutil.rmtree(leaving)


def thinned(steps: Sequence[int], most: int) -> list[int]:
    """At most so many (2 or more) of ascending steps, the first and the last among them.

    Those between are left out where their neighbours' ratio is smallest: a model changes as much from step 10 to 20 as
    from 1,000 to 2,000. So a run that goes on, and is thinned at every save, keeps them spread over all of it.
    """
    steps = list(steps)
    while len(steps) > most:
        ratios = [after / max(before, 1) for before, after in zip(steps, steps[2:], strict=False)]
        del steps[1 + ratios.index(min(ratios))]
    return steps
