"""Damage to the files of a run and of its prepared stories: it must be named, or change nothing. For `faults`.

Pictures and `report.html` are left out: nothing reads them.
"""

import contextlib
import io
import os
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax

from experiments import cli, evaluate, generate, train
from experiments.measuring.breaking.outcome import outcome
from experiments.measuring.breaking.victim import TINY
from tinygpt_jax.errors import UserError
from tinygpt_jax.runs.checkpoint_files import Progress
from tinygpt_jax.runs.record import read_record
from tinygpt_jax.training import checkpoint

LAST = 16
FLAGS = [*TINY, "--steps", str(LAST), "--eval-every", "4"]
TRACEBACK = 70  # an exit code that no command has


class Output(NamedTuple):
    """What a command did."""

    code: int
    result: str  # what it made
    said: str  # on standard error


def corruption(folder: Path, chance: random.Random, count: int) -> Counter[str]:
    """Damage one file at a time, then evaluate, write a story, read what a report reads, and go on training.

    The commands run in this process, which saves them their start, and draw nothing.

    Raises:
        UserError: damage gave a traceback, or another result without a word.
    """
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache" / "compiled"))
    case, tally = folder / "case", Counter()
    with mock.patch("tinygpt_jax.report.write_report"):
        original = make_original(folder / "original")
        expected = outputs(shutil.copytree(original, case))
        files = [path.relative_to(original) for path in sorted(original.rglob("*")) if path.is_file()]
        damages = [(path, kind) for path in files if path.name not in ("lock", ".lock") for kind in DAMAGES]
        chance.shuffle(damages)
        for number in range(count):
            path, kind = damages[number % len(damages)]
            shutil.rmtree(case)
            damage(shutil.copytree(original, case) / path, kind, chance)
            verdict = judge(outputs(case), expected, path)
            print(f"{kind} {path}: {verdict}", flush=True)
            if verdict not in ("named", "harmless"):
                raise UserError(f"case {number}: {kind} {path}: {verdict}")
            tally[verdict] += 1
    shutil.rmtree(case)
    return tally


DAMAGES = ("flip", "zero", "cut", "remove")


def damage(path: Path, kind: str, chance: random.Random) -> None:
    """One bit changed; zeros from some place on, as many file systems leave after a power cut; the end or all gone."""
    content, at = path.read_bytes(), chance.randrange(path.stat().st_size + 1)
    path.unlink()
    if kind == "flip":
        changed = bytes(byte ^ 1 << chance.randrange(8) for byte in content[at : at + 1])
        path.write_bytes(content[:at] + changed + content[at + 1 :])
    elif kind != "remove":
        path.write_bytes(content[:at] + (bytes(len(content) - at) if kind == "zero" else b""))


def make_original(folder: Path) -> Path:
    """A folder with `run`, interrupted before its last save, and `cache`, where its prepared stories are."""

    def interrupt(workdir: Path, state: Any, progress: Progress, *rest: Any) -> Any:
        if progress.step == LAST:
            raise UserError("interrupted")
        return mock.DEFAULT

    folder.mkdir(exist_ok=True)
    with mock.patch.object(checkpoint, "save", wraps=checkpoint.save, side_effect=interrupt):
        trained = call(folder, train.main, FLAGS)
    if trained.code != 1:
        raise UserError(f"the run that nobody damaged: {trained.said}")
    with (folder / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 17, "lo')
    return folder


def outputs(folder: Path) -> dict[str, Output]:
    """What each command makes of a run."""
    found = {
        "evaluate": call(folder, evaluate.main, ["--json"]),
        "generate": call(folder, generate.main, ["--json", "--max-new-tokens", "20"]),
    }
    record = read_record(folder / "run")
    problems, record.problems = record.problems, []
    found["report"] = Output(0, str(record), "".join(f"warning: {problem}\n" for problem in problems))
    found["train"] = call(folder, train.main, [])  # with the settings of the run itself
    if found["train"].code == 0:
        found["train"] = found["train"]._replace(result=str(outcome(folder / "run")))
    return found


def call(folder: Path, main: Callable[[Sequence[str]], None], flags: list[str]) -> Output:
    """A command, as its user sees it."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code = 0
    # Relative paths, so that no output depends on where the folder is.
    with contextlib.chdir(folder), mock.patch.dict(os.environ, {"TINYGPT_CACHE": "cache"}):
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.run(lambda: main(["--workdir", "run", *flags]))
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception:
            code = TRACEBACK
            err.write(traceback.format_exc())
    return Output(code, *(file.buffer.getvalue().decode() for file in (out, err)))  # type: ignore[attr-defined]


def judge(found: dict[str, Output], expected: dict[str, Output], path: Path) -> str:
    """`harmless` where every result is as it was; `named` where what is not comes with the file's name."""
    verdict = "harmless"
    for command, output in found.items():
        if output.code not in (0, 1, 2) or "Traceback" in output.said:
            return f"{command} gave a traceback: {output.said}"
        if (output.code, output.result) == (expected[command].code, expected[command].result):
            continue
        lines = [line for line in output.said.splitlines() if line.startswith(("error: ", "warning: "))]
        if not any(path.name in line for line in lines):
            return f"{command} gave something else without a word: {output} in place of {expected[command]}"
        # A checkpoint less is no other end; lines that are gone are.
        if command == "train" and output.code == 0 and path.suffix != ".jsonl":
            return f"training ended otherwise: {output} in place of {expected[command]}"
        verdict = "named"
    return verdict
