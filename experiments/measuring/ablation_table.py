"""What was measured of variants, as one object and as the rows of a table. For `ablation`."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiments.measuring.tables import Table
from experiments.measuring.variants import Variant


@dataclass(frozen=True)
class Result:
    """A run that came to its end, measured on whole stories; one whose loss was not finite has only a seed."""

    seed: int
    step: int | None = None  # of the best checkpoint, which is measured
    bits_per_byte: float | None = None
    loss: float | None = None  # nats per token
    entropy: float | None = None  # nats per token: the least that is possible, where it is known


def summary(
    variants: Sequence[Variant], results: Mapping[str, Sequence[Result]], times: Mapping[str, Any]
) -> dict[str, Any]:
    """All that is known, with each variant's mean and spread over seeds and its gain over what it is added to.

    The spread is the sample standard deviation. A gain is in bits per byte, positive where the loss fell; in spreads,
    it is divided by the root mean square of the two variants' spreads.
    """
    rows: dict[str, dict[str, Any]] = {}
    base = variants[0].config
    for variant in variants:
        measured = results[variant.name]
        bits = [result.bits_per_byte for result in measured if result.bits_per_byte is not None]
        row: dict[str, Any] = {"added to": variant.on, "flags": variant.flags, "updates": variant.updates}
        row |= {"runs": [asdict(result) for result in measured], "not finite": len(measured) - len(bits)}
        row["bits per byte"] = statistics.mean(bits) if bits else None
        row["spread"] = statistics.stdev(bits) if len(bits) > 1 else None
        known = [(run.loss, run.loss / run.entropy - 1) for run in measured if run.loss is not None and run.entropy]
        row["nats per token"] = statistics.mean(nats for nats, _ in known) if known else None
        row["above the entropy"] = statistics.mean(share for _, share in known) if known else None
        row |= _gain(row, rows[variant.on]) if variant.on is not None else {"gain": None, "gain in spreads": None}
        time = times.get("times", {}).get(variant.name, {})
        row["time per update"] = time["ratio"] if time.get("flags") == variant.flags else None
        row["milliseconds"] = time["milliseconds"] if time.get("flags") == variant.flags else None
        rows[variant.name] = row
    tokens = variants[0].updates * base.training.batch_size * base.model.context_length
    return {"tokens": tokens, "timed on": times.get("device"), "variants": rows}


def _gain(row: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float | None]:
    if row["bits per byte"] is None or before["bits per byte"] is None:
        return {"gain": None, "gain in spreads": None}
    gain = before["bits per byte"] - row["bits per byte"]
    spreads = [row["spread"], before["spread"]]
    if None in spreads or not any(spreads):
        return {"gain": gain, "gain in spreads": None}
    return {"gain": gain, "gain in spreads": gain / (statistics.fmean(s * s for s in spreads) ** 0.5)}


def as_table(report: Mapping[str, Any]) -> Table:
    """The rows to print; what was not measured is left empty."""
    rows = report["variants"]
    first = next(iter(rows.values()))
    table: Table = {}
    for name, row in rows.items():
        bits, spread, n = row["bits per byte"], row["spread"], len(row["runs"]) - row["not finite"]
        cells = {"added to": row["added to"] or "", "updates": f"{row['updates']:,}", "seeds": str(n)}
        if row["not finite"]:
            cells["seeds"] += f", {row['not finite']} not finite"
        cells["bits/byte"] = "" if bits is None else f"{bits:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")
        cells["gain"] = "" if row["gain"] is None else f"{row['gain']:+.4f}"
        cells["in spreads"] = "" if row["gain in spreads"] is None else f"{row['gain in spreads']:+.1f}"
        if first["above the entropy"] is not None:  # built-in stories
            nats, above = row["nats per token"], row["above the entropy"]
            cells["nats/token, above the entropy"] = "" if nats is None else f"{nats:.4f}, {above:+.2%}"
        if (time := row["time per update"]) is not None:
            middle, low, high = time
            cells["time/update"] = f"{middle:.2f} ({low:.2f}-{high:.2f})"
            cells["time of the run"] = f"{middle * row['updates'] / first['updates']:.2f}"
        table[name] = dict(cells)
    return table
