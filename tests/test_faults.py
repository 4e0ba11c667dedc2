"""Faults injected into whole runs: a few seeded ones of those that `faults` tries by the hundred."""

import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from experiments import train
from experiments.measuring.breaking import corruption
from experiments.measuring.breaking.outcome import compare, outcome
from experiments.measuring.breaking.victim import TINY
from tinygpt_jax.runs.checkpoint_files import checkpoints


@pytest.fixture(scope="module", autouse=True)
def nothing_drawn():
    with mock.patch("tinygpt_jax.report.write_report"):
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run that was interrupted before its last save, and its prepared stories."""
    return corruption.make_original(tmp_path_factory.mktemp("faults") / "original")


@pytest.fixture(scope="module")
def expected(original):
    """What evaluation, a story, a report's record and the rest of training are, if nothing is damaged."""
    found = corruption.outputs(shutil.copytree(original, original.with_name("undamaged")))
    assert [output.code for output in found.values()] == [0, 0, 0, 0], found
    return found


# One of each kind of file, and of each kind of damage.
CASES = [
    ("run/config.json", "flip", "named"),
    ("run/metrics.jsonl", "remove", "named"),
    ("run/checkpoints/00000012/manifest.json", "cut", "named"),
    ("run/checkpoints/00000012/config.json", "flip", "named"),
    ("run/checkpoints/00000012/opt_state/ocdbt.process_0/manifest.ocdbt", "zero", "harmless"),
    ("run/checkpoints/00000008/progress.json", "remove", "harmless"),
    ("cache/*/train.tokens", "flip", "named"),
    ("cache/*/manifest.json", "remove", "harmless"),
]


@pytest.mark.parametrize(("pattern", "kind", "verdict"), CASES)
def test_damage_is_named_or_changes_nothing(original, expected, tmp_path, pattern, kind, verdict):
    """A traceback; or another loss, another story or another end of training without a word."""
    case = shutil.copytree(original, tmp_path / "case")
    path = next(case.glob(pattern))
    corruption.damage(path, kind, random.Random(0))
    assert corruption.judge(corruption.outputs(case), expected, path) == verdict


def test_a_full_disk_stops_a_run_with_one_line_and_it_goes_on_when_there_is_room(original, expected, tmp_path):
    """By a limit on the size of a file that the system sets, where one checkpoint more does not fit."""
    case = shutil.copytree(original, tmp_path / "case")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        full = corruption.call(case, train.main, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines = [line for line in full.said.splitlines() if line.startswith("error: ")]
    assert full.code == 1 and len(lines) == 1 and "Traceback" not in full.said
    assert "could not write a checkpoint" in lines[0] and "the checkpoint of step 12 is intact" in lines[0]
    assert [saved.problem() for saved in checkpoints(case / "run")] == [None, None]
    again = corruption.call(case, train.main, [])
    assert again.code == 0
    assert str(outcome(case / "run")) == expected["train"].result


def test_a_judge_that_would_notice(expected):
    """The harness itself: a changed result is no harmless one, nor one that is named for another file."""
    other = expected | {"generate": expected["generate"]._replace(result="another story")}
    path = Path("run/config.json")
    assert corruption.judge(other, expected, path).startswith("generate gave something else without a word")
    said = other["generate"]._replace(said="warning: metrics.jsonl\n")
    assert corruption.judge(other | {"generate": said}, expected, path).startswith("generate gave something else")
    broken = expected | {"train": expected["train"]._replace(code=corruption.TRACEBACK)}
    assert corruption.judge(broken, expected, path).startswith("train gave a traceback")
    with pytest.raises(Exception, match="ended with other samples"):
        compare("a run", {"samples": "1"}, {"samples": "2"})


def test_nothing_is_sent(original, tmp_path, monkeypatch):
    """A library that reports how it is used: no part of a run so much as looks up a name."""
    calls = []
    for where, name in ((socket.socket, "connect"), (socket.socket, "sendto"), (socket, "getaddrinfo")):
        monkeypatch.setattr(where, name, lambda *details: calls.append(details))
    corruption.outputs(shutil.copytree(original, tmp_path / "case"))
    assert calls == []


def test_the_hubs_library_sends_no_telemetry(tmp_path):
    """It reads the variable when it is imported, so it has to be set before."""
    code = (
        "import contextlib; from tinygpt_jax.data import hub\n"
        f"with contextlib.suppress(hub.UnfinishedError): hub.load({str(tmp_path)!r})\n"
        "import huggingface_hub.constants; print(huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr


def test_ctrl_c_says_nothing():
    """Libraries' threads that complain at length because Python ends while they save."""
    code = (
        "import atexit, sys, threading, time; from experiments import cli\n"
        "atexit.register(print, 'a complaint', file=sys.stderr)\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "def main(): print('saved'); raise KeyboardInterrupt\n"
        "cli.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "saved\n", "")


DEVICES = """
import sys
from pathlib import Path
import jax
from experiments.train import parse
from tinygpt_jax.training.loop import train
from tinygpt_jax.training.sharding import make_mesh

def run(name, *stages):
    for devices, steps in stages:
        mesh = make_mesh("data=2,fsdp=2" if devices == 4 else None, jax.devices()[:devices])
        arguments, _ = parse([*sys.argv[2:], "--steps", str(steps)])
        train(arguments.config, Path(sys.argv[1]) / name, mesh=mesh, sampler=lambda *_: [("", "")])

run("moved", (1, 3), (4, 6), (1, 9))
run("alone", (1, 9))
"""


def test_a_run_moves_from_one_device_to_four_and_back(tmp_path):
    """The same up to rounding: the same rows, rates and dropout wherever it goes on."""
    flags = [*TINY, "--schedule", "constant", "--eval-every", "3", "--log-every", "1"]
    four = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", DEVICES, str(tmp_path), *flags]
    done = subprocess.run(command, env=four, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    moved, alone = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("moved", "alone")
    )
    assert [line["step"] for line in moved] == [line["step"] for line in alone]
    for line, other in zip(moved, alone, strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    assert moved != alone  # sums in another order: it did run on four
