"""Which checkpoints of a run stay."""

import numpy as np
import pytest

from tinygpt_jax.config import FREE_TO_CHANGE, Config
from tinygpt_jax.training.thinning import remove_old, thinned


def test_thinning_keeps_both_ends_and_even_ratios():
    """A run that saves every 10 steps and is thinned each time still has its first steps after 10,000."""
    kept = []
    for step in range(10, 10_001, 10):
        kept = thinned([*kept, step], 12)
    ratios = np.divide(kept[1:], kept[:-1])
    assert len(kept) == 12 and kept[0] == 10 and kept[-1] == 10_000
    assert ratios.max() < 4 and kept[2] < 100
    assert thinned([0, 5], 12) == [0, 5]


def test_a_run_keeps_some_of_all_checkpoints_if_asked(tmp_path):
    """Without, the newest two and the best."""
    for keep, expected in ((False, ["00000001", "00000039", "00000040"]), (True, None)):
        for step in range(1, 41):
            (tmp_path / str(keep) / "checkpoints" / f"{step:08d}").mkdir(parents=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "tinygpt_jax.runs.checkpoint_files.Checkpoint.validation_loss", property(lambda one: one.step)
            )
            remove_old(tmp_path / str(keep), keep)
        left = sorted(path.name for path in (tmp_path / str(keep) / "checkpoints").iterdir())
        if expected:
            assert left == expected
        else:
            assert {"00000001", "00000039", "00000040"} <= set(left) and 12 <= len(left) <= 14


def test_keeping_more_is_free_to_change():
    some = Config.from_json('{"training": {"checkpoints": "all"}}')
    assert some.differences(Config(), ignore=FREE_TO_CHANGE) == []
