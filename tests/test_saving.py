"""Saving behind the updates: nothing of a checkpoint depends on what comes after it was asked for."""

# ruff: noqa: F811 (fixtures that are imported)

import threading
import time

import jax
import numpy as np
import pytest

from tests.test_checkpoint import CONFIG, OPTIMIZER, state, words  # noqa: F401
from tinygpt_jax.errors import UserError
from tinygpt_jax.runs.checkpoint_files import Progress, checkpoints
from tinygpt_jax.runs.folder import add_line, has_changed, marks_of
from tinygpt_jax.training.checkpoint import restore_state
from tinygpt_jax.training.saving import Saver
from tinygpt_jax.training.sharding import make_mesh


class Held:
    """A run's progress whose writing waits until the test lets it go on, or has it fail."""

    def __init__(self, *progress, error=None):
        self.progress, self.error, self.go_on = Progress(*progress), error, threading.Event()

    def __getattr__(self, name):
        return getattr(self.progress, name)

    def to_json(self):
        assert self.go_on.wait(30)
        if self.error:
            raise self.error
        return self.progress.to_json()


@pytest.fixture
def saver(tmp_path, words):
    return Saver(tmp_path, CONFIG, words)


update = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)


def test_updates_go_on_while_a_checkpoint_is_written_and_it_is_that_of_its_moment(tmp_path, saver, state):
    """A state that later updates write over, or metrics of steps to come that are taken for those of this one."""
    metrics = tmp_path / "metrics.jsonl"
    add_line(metrics, {"step": 1})
    latest, held = jax.tree.map(jax.numpy.copy, state), Held(1, "corpus", None, (), marks_of(tmp_path))
    with saver:
        saver.save(latest, held)
        add_line(metrics, {"step": 2})
        for _ in range(3):
            latest = update(latest)
        jax.block_until_ready(latest)
        saver.check()
        assert checkpoints(tmp_path) == []  # all this while it is written
        held.go_on.set()
    (saved,) = checkpoints(tmp_path)
    restored = restore_state(saved, OPTIMIZER, make_mesh())
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(restored.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert saved.progress().files["metrics.jsonl"].size == len('{"step": 1}\n')
    assert not has_changed(metrics, saved.progress().files["metrics.jsonl"])


def test_a_save_waits_for_the_one_before(tmp_path, saver, state):
    with saver:
        held = Held(1, None)
        saver.save(state, held)
        threading.Timer(0.2, held.go_on.set).start()
        saver.save(state, Progress(2, None))
        assert [saved.step for saved in checkpoints(tmp_path)][:1] == [1]
    assert [saved.step for saved in checkpoints(tmp_path)] == [1, 2]


@pytest.mark.parametrize("asked", ["check", "wait", "save", "end"])
def test_a_save_that_failed_is_one_line_the_next_time_somebody_asks(tmp_path, saver, state, asked):
    with pytest.raises(UserError, match="No space left on device; the checkpoint of step 1 is intact") as caught, saver:
        saver.save(state, Progress(1, None))
        held = Held(2, None, error=OSError(28, "No space left on device"))
        saver.save(state, held)
        saver.check()  # it has not failed yet
        held.go_on.set()
        if asked == "check":
            for _ in range(1000):
                saver.check()
                time.sleep(0.01)
        elif asked == "wait":
            saver.wait()
        elif asked == "save":
            saver.save(state, Progress(3, None))
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def test_another_failure_is_told_once_everything_is_saved(tmp_path, saver, state):
    """A loop that ends while libraries' threads write: Python would end under them."""
    with pytest.raises(ValueError, match="of the loop"), saver:
        held = Held(1, None)
        saver.save(state, held)
        threading.Timer(0.2, held.go_on.set).start()
        raise ValueError("of the loop")
    assert [saved.step for saved in checkpoints(tmp_path)] == [1]


def test_ctrl_c_does_not_wait(tmp_path, saver, state):
    held = Held(1, None)
    threading.Timer(1.0, held.go_on.set).start()
    with pytest.raises(KeyboardInterrupt), saver:
        saver.save(state, held)
        raise KeyboardInterrupt
    assert checkpoints(tmp_path) == []
    saver.wait()
