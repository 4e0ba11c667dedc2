"""What a run says of itself, with a clock of the test's own."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tinygpt_jax.config import Config, ModelConfig, TrainingConfig
from tinygpt_jax.errors import UserError
from tinygpt_jax.runs.checkpoint_files import Progress
from tinygpt_jax.training.loop import train
from tinygpt_jax.training.metrics import TrainingLog
from tinygpt_jax.training.step import StepMetrics


@pytest.fixture
def log(tmp_path):
    """Makes a log of 10 tokens an update and a line every fourth; its clock is in the test's hands."""
    logs = []

    def make(progress=Progress(0, None)):  # noqa: B008
        training = TrainingConfig(batch_size=2, log_every=4)
        parts = SimpleNamespace(
            config=Config(ModelConfig(context_length=5), training=training),
            total_steps=20,
            batches=SimpleNamespace(per_epoch=8.0),
            learning_rate=lambda step: 0.1,
        )
        clock = SimpleNamespace(now=0.0)
        logs.append(TrainingLog(parts, tmp_path, progress, clock=lambda: clock.now))
        return logs[-1], clock

    yield make
    for made in logs:
        made.close()


def do(log, clock, steps, seconds=1.0):
    """Updates of a second each."""
    for step in steps:
        clock.now += seconds
        log.add(step, StepMetrics(np.float32(2), np.float32(1), np.bool_(True)))  # pyright: ignore


def timings(workdir):
    return [json.loads(line) for line in (workdir / "timings.jsonl").read_text().splitlines()]


def test_pauses_are_no_time_of_updates(log, tmp_path, capsys):
    """A clock that is set back at an evaluation forgets the updates before it: too many tokens in a second."""
    made, clock = log()
    do(made, clock, range(1, 7))
    made.read()
    with made.pause():
        clock.now += 1000
    do(made, clock, range(7, 13))
    made.read()
    lines = timings(tmp_path)
    assert [line["step"] for line in lines] == [1, 4, 8, 12]
    assert [line["tokens_per_second"] for line in lines[1:]] == pytest.approx([10, 10, 40 / 3])
    assert [line["seconds"] for line in lines] == [2, 3, 4, 3]  # a line waits for the update after it
    assert sum(line["seconds"] for line in lines) == 12
    assert "step 8/20: loss 2.0000, 10 tokens/s, 0m12s left" in capsys.readouterr().err


def test_updates_of_an_earlier_process_count_in_the_loss_and_not_in_the_time(log, tmp_path):
    made, clock = log(Progress(6, None, unlogged=((4.0, 1.0), (2.0, 1.0))))
    do(made, clock, (7, 8))
    made.read()
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (metrics["step"], metrics["loss"], metrics["epoch"], metrics["tokens"]) == (8, 2.5, 1.0, 80)
    assert timings(tmp_path) == [{"step": 8, "seconds": 2.0, "tokens_per_second": 10.0}]


def test_tensorboard_that_is_missing_is_missed_before_stories_are_prepared(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    config = Config(training=TrainingConfig(tensorboard=True))
    with pytest.raises(UserError, match=r'needs its extra: pip install -e "\.\[tensorboard\]"'):
        train(config, tmp_path)
