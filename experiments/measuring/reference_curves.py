"""Make the reference curves of a preset, for `experiments.compare`.

From three or more finished runs that differ in their seed only, such as the ablation's, to a file of the package:

    python -m experiments.measuring.reference_curves --preset quickstart runs/quickstart/0 runs/quickstart/1 ...
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from experiments import cli, presets
from tinygpt_jax.devices import describe_devices, use_device
from tinygpt_jax.errors import UserError, require
from tinygpt_jax.files import write_atomically
from tinygpt_jax.report import reference
from tinygpt_jax.runs.record import read_record

FEWEST = 3


@dataclass(frozen=True)
class Arguments:
    """Make reference curves of finished runs of a preset, on the machine where they were trained."""

    runs: Positional[tuple[Path, ...]]  # their folders
    preset: str  # quickstart or laptop
    to: Path | None = None  # the file (default: that of the package)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, check the runs, and write the file.

    Raises:
        UserError: the runs are too few, not finished, or not of the preset.
    """
    arguments = cli.parse(Arguments, argv)
    config = presets.get(arguments.preset).config
    folders = list(dict.fromkeys(arguments.runs))
    require(len(folders) >= FEWEST, "runs", len(folders), f"must be at least {FEWEST}, to know their spread")
    records = [read_record(folder) for folder in folders]
    use_device()
    made = reference.make(arguments.preset, config, records, describe_devices())
    for folder, record in zip(folders, records, strict=True):
        if why := made.why_not(record):
            raise UserError(f"{folder}: {why}")
        if not record.curves["loss"] or record.curves["loss"][-1][0] != config.training.steps:
            raise UserError(f"{folder} is not finished: give the training command again")
    require(len(set(made.seeds)) == len(folders), "runs", folders, "must have different seeds")
    path = arguments.to or reference.file_of(arguments.preset)
    write_atomically(path, made.to_json().encode())
    print(f"{path}: {len(folders)} runs of {arguments.preset}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    cli.run(main)
