"""How a preset's loss falls: curves of several seeds that are shipped, and where a run leaves them.

The training loss and the norm of the gradient are compared as means over windows of 50 updates, the validation loss
where it was measured. Around the seeds' mean lies a band, and a run is told where it leaves it.

A run with a seed of the reference, 0 for most, has the same first parameters and batches, and its first losses are the
same up to rounding. There the band is narrow: it shows what the spread of seeds would hide, such as a wrong beta2.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple

from tinygpt_jax.config import FREE_TO_CHANGE, Config
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import read_text
from tinygpt_jax.runs.record import Curve, RunRecord

WINDOW = 50  # updates
CURVES = {
    "loss": "training loss",
    "validation_loss": "validation loss",
    "ratio": "validation loss over training loss",  # of the updates just before: how well a seed learns cancels out
    "gradient_norm": "gradient norm",
}

# The band's half width in standard deviations over seeds, and the least it is, as a share of the mean. Chosen by what
# sound runs and planted mistakes do: `experiments.measuring.planted` measures it.
DEVIATIONS = 6.0
LEAST = {"loss": 0.005, "validation_loss": 0.005, "ratio": 0.01, "gradient_norm": 0.1}

# Of a run with a seed of the reference: up to this step, this share of that seed's own loss. With plain arithmetic or
# in bfloat16 it differs by 0.0007 at most until then, and by 0.004 at step 200 of the quickstart.
SAME_SEED_STEPS, SAME_SEED_SHARE = 150, 0.002

_FILES = Path(__file__).parent
# How the data were made is free, but a schedule that ends elsewhere gives other rates from the beginning.
_IGNORED = FREE_TO_CHANGE - {"steps"} | {"seed", "epochs"}


class Limits(NamedTuple):
    """The band at a step."""

    step: int
    low: float
    high: float


@dataclass(frozen=True)
class Excursion:
    """Where a curve of a run lies outside the band: at two points in a row, or at one by twice its half width."""

    curve: str  # as in CURVES
    side: str  # above or below
    first: int  # step
    last: int
    lasts: bool  # to the end of what can be compared

    def __str__(self) -> str:
        if self.lasts:
            return f"{CURVES[self.curve]} is {self.side} the band from step {self.first:,} on"
        if self.first == self.last:
            return f"{CURVES[self.curve]} was {self.side} the band at step {self.first:,}"
        return f"{CURVES[self.curve]} was {self.side} the band from step {self.first:,} to {self.last:,}"


@dataclass(frozen=True)
class Reference:
    """Runs of a preset that differ in their seeds only."""

    preset: str
    config: Config
    fingerprint: str  # of their stories
    seeds: tuple[int, ...]
    made_on: str
    curves: dict[str, list[list[tuple[int, float]]]]  # by CURVES' names; of each seed, with the same steps

    def to_json(self) -> str:
        """All of it, a line for each curve."""
        document = asdict(self) | {"config": json.loads(self.config.to_json()), "curves": None}
        lines = [
            f"{json.dumps(name)}: [{','.join(chr(10) + '  ' + json.dumps(_short(curve)) for curve in curves)}]"
            for name, curves in self.curves.items()
        ]
        return json.dumps(document).replace('"curves": null', '"curves": {\n' + ",\n".join(lines) + "}") + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Reference":
        """Read `to_json`'s form, which is ours and not a stranger's."""
        document = json.loads(text)
        curves = {
            name: [[(step, value) for step, value in curve] for curve in curves]
            for name, curves in document.pop("curves").items()
        }
        config = Config.from_json(json.dumps(document.pop("config")))
        return cls(config=config, curves=curves, seeds=tuple(document.pop("seeds")), **document)

    def band(self, name: str, seed: int | None = None) -> list[Limits]:
        """Mean plus and minus so many standard deviations of a new run, with the variances of neighbours pooled.

        For a seed of the reference the first training losses are that seed's own, and nearly so.

        A run that is not among them differs from the mean of n by s sqrt(1 + 1/n). Three seeds tell little of s at a
        step; as a share of the mean it changes slowly, so that it is that of five steps together.
        """
        curves = self.curves[name]
        means = [fmean(curve[i][1] for curve in curves) for i in range(len(curves[0]))]
        variances = [variance([curve[i][1] / mean for curve in curves]) for i, mean in enumerate(means)]
        limits = []
        for i, mean in enumerate(means):
            pooled = fmean(variances[max(0, i - 2) : i + 3])
            width = mean * max(DEVIATIONS * math.sqrt(pooled * (1 + 1 / len(curves))), LEAST[name])
            step = curves[0][i][0]
            if name == "loss" and seed in self.seeds and step <= SAME_SEED_STEPS:
                mean = curves[self.seeds.index(seed)][i][1]
                width = SAME_SEED_SHARE * mean
            limits.append(Limits(step, mean - width, mean + width))
        return limits

    def why_not(self, record: RunRecord) -> str | None:
        """Why a run cannot be compared with these, if so."""
        if record.config is None:
            return "its config.json cannot be read"
        if different := record.config.differences(self.config, _IGNORED):
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            return f"its settings are not those of {self.preset} ({'; '.join(different[:3])}{more})"
        if (fingerprint := record.corpus.get("fingerprint")) is None:
            return "which stories it learns from is not known: it has no corpus.json, or one of an earlier version"
        if fingerprint != self.fingerprint:
            return f"it learns from other stories than the reference runs of {self.preset}"
        return None

    def excursions(self, record: RunRecord) -> list[Excursion]:
        """Where a run that can be compared leaves the bands, the earliest first."""
        found = (excursion for name in self.curves for excursion in self._of_curve(name, record))
        return sorted(found, key=lambda excursion: excursion.first)

    def _of_curve(self, name: str, record: RunRecord) -> Iterator[Excursion]:
        values = dict(comparable(record, name))
        if (
            name in ("validation_loss", "ratio")
            and record.config
            and (record.config.training.eval_batches != self.config.training.eval_batches)
        ):
            return  # measured on other stories
        # How far outside, in half widths: 0 in the middle, 1 and -1 at the edges.
        places = [
            (step, (values[step] - (low + high) / 2) / ((high - low) / 2))
            for step, low, high in self.band(name, record.config.training.seed if record.config else None)
            if step in values
        ]
        for side, sign in (("above", 1), ("below", -1)):
            stretch: list[tuple[int, float]] = []
            for step, place in [*places, (None, 0.0)]:
                if step is not None and sign * place > 1:
                    stretch.append((step, sign * place))
                    continue
                if len(stretch) > 1 or any(place > 2 for _, place in stretch):
                    yield Excursion(name, side, stretch[0][0], stretch[-1][0], stretch[-1][0] == places[-1][0])
                stretch = []


def comparable(record: RunRecord, name: str) -> list[tuple[int, float]]:
    """A curve of a run as it is compared: means over windows, by their last step, or what was measured at a step."""
    if name in record.curves and name != "validation_loss":
        return windowed(record.curves[name], WINDOW)
    measured = [(int(step), value) for step, value in record.curves["validation_loss"]]
    if name == "validation_loss":
        return measured
    training = [(step, value, mean_before(record.curves["loss"], step)) for step, value in measured]
    return [(step, value / before) for step, value, before in training if before]


def mean_before(curve: Curve, stop: int) -> float | None:
    """The mean of the last WINDOW updates up to one, as `windowed` takes it, if they were logged."""
    shift = WINDOW - stop
    if shift > 0:
        return None
    return dict(windowed([(step + shift, value) for step, value in curve], WINDOW, begin=shift)).get(WINDOW)


def windowed(curve: Curve, width: int, begin: int = 0) -> list[tuple[int, float]]:
    """Means over windows of `width` updates, by their last step; the last window only if it is whole.

    Each point is the mean of the updates since the point before, as in metrics.jsonl. One that reaches over the border
    of two windows counts in both, with as many updates as lie there; one longer than a window tells too little, and
    the windows that it touches are left out. The first point's updates come after step `begin`.
    """
    sums: dict[int, float] = {}
    updates: dict[int, float] = {}
    before = begin
    for step, value in curve:
        for window in range(before // width, math.ceil(step / width)) if step - before <= width else ():
            inside = min(step, (window + 1) * width) - max(before, window * width)
            if inside > 0:
                sums[window] = sums.get(window, 0.0) + inside * value
                updates[window] = updates.get(window, 0) + inside
        before = int(step)
    return [((window + 1) * width, total / width) for window, total in sums.items() if updates[window] == width]


def file_of(preset: str) -> Path:
    """Where a preset's reference curves are."""
    return _FILES / f"reference_{preset}.json"


def shipped() -> list[Reference]:
    """The reference curves that come with the program."""
    return [Reference.from_json(read_text(path)) for path in sorted(_FILES.glob("reference_*.json"))]


def make(preset: str, config: Config, records: Sequence[RunRecord], made_on: str) -> Reference:
    """Reference curves of a preset, which has this configuration, from runs that differ in their seeds only.

    Raises:
        UserError: a run does not say what it is, or measured at other steps than the first.
    """
    for record in records:
        if record.config is None or "fingerprint" not in record.corpus:
            raise UserError(
                f"{record.name}: {'; '.join(record.problems) or 'its corpus.json is of an earlier version'}"
            )
    curves = {name: [comparable(record, name) for record in records] for name in CURVES}
    for name, found in curves.items():
        if not found[0] or any([step for step, _ in curve] != [step for step, _ in found[0]] for curve in found):
            raise UserError(f"the runs have their {CURVES[name]} at different steps, or have none: train them alike")
    seeds = tuple(record.config.training.seed for record in records if record.config)
    return Reference(preset, config, str(records[0].corpus["fingerprint"]), seeds, made_on, curves)


def _short(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(step, float(f"{value:.5g}")) for step, value in curve]
