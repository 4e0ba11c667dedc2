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
    checkpoints: Literal["best", "last", "all"] = "best"  # by validation loss, newest, or a slider over all that fit
    weights: Literal["float16", "int8"] = "float16"  # int8 makes the page half as large, and the model a little worse


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, write the page, and say where it is."""
    arguments = cli.parse(Arguments, argv)
    check_output("--to", arguments.to, "page")
    use_device("cpu")

    from tinygpt_jax.explorer import fits, write_explorer
    from tinygpt_jax.runs.checkpoint_files import checkpoints, saved_config
    from tinygpt_jax.training.checkpoint import open_all, open_run
    from tinygpt_jax.training.thinning import thinned

    workdir, which = arguments.workdir, arguments.checkpoints
    steps, saved = [checkpoint.step for checkpoint in checkpoints(workdir)], saved_config(workdir)
    most = fits(saved.model, arguments.weights) if saved else 0
    shown = steps if most >= len(steps) else thinned(steps, most) if most > 1 else steps[-1:]
    if which == "all" and 0 < most < len(steps):
        print(f"{len(shown)} of {len(steps)} checkpoints: a page holds no more of this model in {arguments.weights}")
    runs = open_all(workdir, shown) if which == "all" else [open_run(workdir, which)]
    losses = {saved.step: saved.progress().validation_loss for saved in checkpoints(workdir)}
    size = write_explorer(runs, losses, arguments.to, arguments.weights)
    after = ", ".join(f"{run.step:,}" for run in runs)
    updates = "update" if after == "1" else "updates"
    print(f"{arguments.to}: {size / 1e6:.1f} MB, the model after {after} {updates}; open it in a browser")


if __name__ == "__main__":
    cli.run(main)
