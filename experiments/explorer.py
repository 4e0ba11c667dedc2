"""Make a web page to look into a trained model: python -m experiments.explorer --workdir runs/ --to explorer.html"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments import cli
from tinygpt_jax.devices import use_device
from tinygpt_jax.files import check_output


@dataclass(frozen=True)
class Arguments:
    """Write one HTML file in which a trained model writes, reads and can be looked into, in any browser, offline."""

    workdir: Path = Path("runs")  # folder of the run
    to: Path = Path("explorer.html")  # the file; a page that is there is replaced, and nothing else
    checkpoints: Literal["best", "last", "all"] = "best"  # by validation loss, the newest, or a slider over those kept
    weights: Literal["float16", "int8"] = "float16"  # int8 makes the page half as large, and the model a little worse


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, write the page, and say where it is."""
    arguments = cli.parse(Arguments, argv)
    check_output("--to", arguments.to, "page")
    use_device("cpu")

    from tinygpt_jax.explorer import write_explorer
    from tinygpt_jax.runs.checkpoint_files import checkpoints
    from tinygpt_jax.training.checkpoint import open_all, open_run

    workdir, which = arguments.workdir, arguments.checkpoints
    runs = open_all(workdir) if which == "all" else [open_run(workdir, which)]
    losses = {saved.step: saved.progress().validation_loss for saved in checkpoints(workdir)}
    size = write_explorer(runs, losses, arguments.to, arguments.weights)
    steps = ", ".join(f"{run.step:,}" for run in runs)
    print(f"{arguments.to}: {size / 1e6:.1f} MB, the model after {steps} updates; open it in a browser")


if __name__ == "__main__":
    cli.run(main)
