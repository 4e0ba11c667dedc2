"""What a run folder tells about its run, whatever is missing, torn or forged in it.

Nothing that is read is trusted: files are bounded in size, and values of a wrong type or range are left out.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt_jax.config import Config
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import read_text
from tinygpt_jax.runs.checkpoint_files import DamageError, FormatError, checkpoints, while_it_trains
from tinygpt_jax.runs.folder import LINES, WHOLE, has_changed

Curve = Sequence[tuple[float, float]]  # (step, value)

NOT_TRAINED = "not trained here yet: there is nothing to draw"
MAX_LOSS = 700.0  # nats; beyond it the perplexity is no number any more
_MAX_BINS = 10_000

# The curves in each file of lines, and what their values can be.
_CURVES = {
    "metrics.jsonl": {
        "loss": (0, MAX_LOSS),
        "validation_loss": (0, MAX_LOSS),
        "validation_accuracy": (0, 1),
        "learning_rate": (0, 1e6),
        "gradient_norm": (1e-12, 1e12),
        "epoch": (0, 1e9),
    },
    "timings.jsonl": {"seconds": (0, 1e9), "tokens_per_second": (0, 1e12), "share_of_peak": (0, 1)},
}


class WrittenStory(NamedTuple):
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
    curves: dict[str, Curve] = field(
        default_factory=lambda: {curve: () for curves in _CURVES.values() for curve in curves}
    )
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
        UserError: `workdir` is not a run folder: no such folder, a checkpoint, or without configuration and metrics.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such folder; give the --workdir of a run")
    if (workdir / "progress.json").exists() and not (workdir / "metrics.jsonl").exists():
        run = workdir.resolve().parents[1]
        raise UserError(f"{workdir} is a checkpoint and no run folder; give the run that it is of, such as {run}")
    if not any((workdir / name).exists() for name in ("config.json", "metrics.jsonl")):
        raise UserError(
            f"{workdir} is not a run folder: it has no config.json and no metrics.jsonl; give the --workdir of a run"
        )
    record = RunRecord(workdir.resolve().name)
    readers = {"config.json": _read_config, **dict.fromkeys(_CURVES, _read_curves)}
    readers |= {"samples.jsonl": _read_samples, "corpus.json": _read_corpus}
    missing = [name for name in readers if not (workdir / name).exists()]
    if len(missing) == len(readers) - 1 and "config.json" not in missing:  # imported, or begun just now
        record.problems.append(NOT_TRAINED)
    else:
        record.problems += [f"{name} is not there" for name in missing]
    for name, read in readers.items():
        if name in missing:
            continue
        try:
            read(record, name, read_text(workdir / name, errors="replace"))  # what is left of a damaged file is used
        except UserError as error:
            record.problems.append(str(error))
    _compare_with_checkpoint(record, workdir)
    return record


def _read_config(record: RunRecord, name: str, text: str) -> None:
    try:
        record.config = Config.from_json(text)
    except UserError as error:
        raise UserError(f"{name} cannot be used: {error}") from None


def _read_curves(record: RunRecord, name: str, text: str) -> None:
    lines = _objects(record, name, text)
    for curve, (low, high) in _CURVES[name].items():
        points = [(line["step"], float(line[curve])) for line in lines if _is_number(line.get(curve), low, high)]
        record.curves[curve] = points


def _read_samples(record: RunRecord, name: str, text: str) -> None:
    for line in _objects(record, name, text):
        if isinstance(line.get("prompt"), str) and isinstance(line.get("text"), str):
            record.samples.append(WrittenStory(line["step"], line["prompt"], line["text"]))


def _objects(record: RunRecord, name: str, text: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file that have a step."""
    # Not splitlines(), which also splits at separators that stories may contain.
    objects = [_parse_object(line) for line in text.split("\n") if line]
    if not objects:
        record.problems.append(f"{name} is empty")
    elif objects[-1] is None:
        record.problems.append(f"the last line of {name} is torn: left out")
    if damaged := objects[:-1].count(None):
        record.problems.append(f"{damaged} lines of {name} are damaged: left out")
    return [line for line in objects if line and type(line.get("step")) is int and 0 <= line["step"] <= 1e15]


def _read_corpus(record: RunRecord, name: str, text: str) -> None:
    document = _parse_object(text)
    if document is None:
        raise UserError(f"{name} is damaged: no JSON object")
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
    if "unigram_entropy" in document:
        raise UserError(
            f"{name} is of an earlier version: its entropies are of other stories than the loss, and left out; "
            "remove it and give the training command again, which writes it anew"
        )


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


@while_it_trains
def _compare_with_checkpoint(record: RunRecord, workdir: Path) -> None:
    """Say which files are no longer what they were when the newest checkpoint was saved."""
    for newest in checkpoints(workdir)[-1:]:
        try:
            marks = newest.progress().files
        except (DamageError, FormatError) as error:
            record.problems.append(f"the newest checkpoint is damaged: {error}")
            return
        for name in LINES + WHOLE:
            path = workdir / name
            with suppress(OSError):  # which was said when it was read
                if name in marks and path.is_file() and has_changed(path, marks[name]):
                    record.problems.append(f"{name} has changed since the checkpoint of step {newest.step} was saved")


def _parse_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_number(value: Any, low: float, high: float) -> bool:
    """Whether a JSON value is a number in a range; NaN and infinity are in none, and true is no number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
