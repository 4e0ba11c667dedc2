"""What a run folder tells about its run, whatever is missing, torn or forged in it.

Nothing that is read is trusted: files are bounded in size, and values of a wrong type or range are left out.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinygpt_jax.config import Config
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import read_text
from tinygpt_jax.runs.checkpoint_files import checkpoints
from tinygpt_jax.runs.folder import LINES, WHOLE, has_changed

Curve = Sequence[tuple[float, float]]  # (step, value)

MAX_LOSS = 700.0  # nats; beyond it the perplexity is no number any more
_MAX_BINS = 10_000

# The curves in a file of lines, and what their values can be.
_METRICS = {
    "loss": (0, MAX_LOSS),
    "validation_loss": (0, MAX_LOSS),
    "validation_accuracy": (0, 1),
    "learning_rate": (0, 1e6),
    "gradient_norm": (1e-12, 1e12),
    "epoch": (0, 1e9),
}
_TIMINGS = {"seconds": (0, 1e9), "tokens_per_second": (0, 1e12), "share_of_peak": (0, 1)}


@dataclass(frozen=True)
class WrittenStory:
    """What the model wrote during training."""

    step: int
    prompt: str
    text: str  # with the prompt


@dataclass
class RunRecord:
    """A run as its folder tells it; what is not there is empty or None, and `problems` says why.

    Curves are named as in metrics.jsonl (`loss` is of training) and timings.jsonl (`seconds` are since the point
    before). Losses and entropies are in nats per token.
    """

    name: str
    config: Config | None = None
    curves: dict[str, Curve] = field(default_factory=lambda: dict.fromkeys([*_METRICS, *_TIMINGS], ()))
    samples: list[WrittenStory] = field(default_factory=list)
    corpus: Mapping[str, Any] = field(default_factory=dict)  # the plain values of corpus.json
    words: dict[str, int] = field(default_factory=dict)
    length_histogram: dict[str, list[int]] | None = None
    problems: list[str] = field(default_factory=list)

    def number(self, name: str) -> float | None:
        """A number above 0 of corpus.json."""
        value = self.corpus.get(name)
        return value if isinstance(value, int | float) and value > 0 else None


def read_record(workdir: Path) -> RunRecord:
    """Read all there is.

    Raises:
        UserError: `workdir` is not a run folder: no such folder, or one without configuration and metrics.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such folder; give the --workdir of a run")
    if not (workdir / "config.json").exists() and not (workdir / "metrics.jsonl").exists():
        raise UserError(
            f"{workdir} is not a run folder: it has no config.json and no metrics.jsonl; give the --workdir of a run"
        )
    record = RunRecord(workdir.resolve().name)
    _read_config(record, workdir / "config.json")
    for name, ranges in (("metrics.jsonl", _METRICS), ("timings.jsonl", _TIMINGS)):
        lines = _read_lines(record, workdir / name)
        for curve, range_ in ranges.items():
            points = [(line["step"], float(line[curve])) for line in lines if _is_number(line.get(curve), *range_)]
            record.curves[curve] = points
    for line in _read_lines(record, workdir / "samples.jsonl"):
        if isinstance(line.get("prompt"), str) and isinstance(line.get("text"), str):
            record.samples.append(WrittenStory(line["step"], line["prompt"], line["text"]))
    _read_corpus(record, workdir / "corpus.json")
    _compare_with_checkpoint(record, workdir)
    return record


def _read_config(record: RunRecord, path: Path) -> None:
    text = _read_text(record, path)
    if text is not None:
        try:
            record.config = Config.from_json(text)
        except (UserError, ValueError) as error:
            record.problems.append(f"config.json cannot be used: {error}")


def _read_lines(record: RunRecord, path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file that have a step."""
    text = _read_text(record, path)
    if text is None:
        return []
    # Not splitlines(), which also splits at separators that stories may contain.
    objects = [_parse_object(line) for line in text.split("\n") if line]
    if not objects:
        record.problems.append(f"{path.name} is empty")
    elif objects[-1] is None:
        record.problems.append(f"the last line of {path.name} is torn: left out")
    if damaged := objects[:-1].count(None):
        record.problems.append(f"{damaged} lines of {path.name} are damaged: left out")
    return [line for line in objects if line and type(line.get("step")) is int and 0 <= line["step"] <= 1e15]


def _read_corpus(record: RunRecord, path: Path) -> None:
    text = _read_text(record, path)
    if text is None:
        return
    document = _parse_object(text)
    if document is None:
        record.problems.append("corpus.json is damaged: no JSON object")
        return
    if "unigram_entropy" in document:
        record.problems.append(
            "corpus.json is of an earlier version: its entropies are of other stories than the loss, and left out; "
            "remove it and give the training command again, which writes it anew"
        )
    record.corpus = {
        name: value for name, value in document.items() if isinstance(value, str) or _is_number(value, 0, 1e15)
    }
    words = document.get("words")
    if isinstance(words, dict):
        record.words = {
            word[:50]: count
            for word, count in list(words.items())[:1000]
            if word.strip() and word.isprintable() and _is_number(count, 1, 1e15)
        }
    record.length_histogram = _histogram(document.get("length_histogram"))


def _histogram(value: Any) -> dict[str, list[int]] | None:
    """`plots.length_histogram`'s form, if this is it."""
    if not isinstance(value, dict) or not all(isinstance(value.get(name), list) for name in ("edges", "counts")):
        return None
    edges, counts = value["edges"], value["counts"]
    if not 1 <= len(counts) <= _MAX_BINS or len(edges) != len(counts) + 1:
        return None
    whole = all(isinstance(number, int) and _is_number(number, -1e12, 1e12) for number in edges + counts)
    if not whole or min(counts) < 0 or sum(counts) == 0 or sorted(set(edges)) != edges:
        return None
    return {"edges": edges, "counts": counts}


def _compare_with_checkpoint(record: RunRecord, workdir: Path) -> None:
    """Say which files are no longer what they were when the newest checkpoint was saved."""
    while newest := checkpoints(workdir)[-1:]:
        try:
            marks = newest[0].progress().files
        except UserError as error:
            if checkpoints(workdir)[-1:] != newest:
                continue  # training saved another one, and removed this one while we looked
            record.problems.append(f"the newest checkpoint is damaged: {error}")
            return
        for name in LINES + WHOLE:
            path = workdir / name
            with suppress(OSError):  # which was said when it was read
                if name in marks and path.is_file() and has_changed(path, marks[name]):
                    step = newest[0].step
                    record.problems.append(f"{name} has changed since the checkpoint of step {step} was saved")
        return


def _read_text(record: RunRecord, path: Path) -> str | None:
    if not path.exists():
        record.problems.append(f"{path.name} is not there")
        return None
    try:
        return read_text(path, errors="replace")  # what is left of a damaged file is used
    except UserError as error:
        record.problems.append(str(error))
        return None


def _parse_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_number(value: Any, low: float, high: float) -> bool:
    """Whether a JSON value is a number in a range; NaN and infinity are in none, and true is no number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
