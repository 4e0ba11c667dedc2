"""Write a trained model as safetensors, for other programs: python -m experiments.export --workdir runs/ --to model/"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments import cli
from tinygpt_jax.devices import use_device


@dataclass(frozen=True)
class Arguments:
    """Write a trained model's parameters (safetensors), configuration and vocabulary into a new folder.

    experiments.import_model makes a run of such a folder; experiments/pytorch_reference.py loads it into PyTorch.
    """

    to: Path  # the new folder
    workdir: Path = Path("runs")  # folder of the run
    checkpoint: Literal["best", "last"] = "best"  # by validation loss, or the newest


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and export."""
    arguments = cli.parse(Arguments, argv)
    use_device("cpu")

    from tinygpt_jax.export import export_model
    from tinygpt_jax.training.checkpoint import open_run

    run = open_run(arguments.workdir, arguments.checkpoint)
    export_model(run, arguments.to)
    print(f"{arguments.to}: the model after {run.step:,} updates, as safetensors")


if __name__ == "__main__":
    cli.run(main)
