"""Make a run of an exported model: python -m experiments.import_model --model model/ --workdir runs/imported"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import cli
from tinygpt_jax.devices import use_device


@dataclass(frozen=True)
class Arguments:
    """Make a run folder of a folder that experiments.export wrote, to write stories with, evaluate, or train further.

    Training starts again at step 0, from these parameters, on any stories that have the model's vocabulary.
    """

    model: Path  # the exported folder
    workdir: Path = Path("runs")  # folder of the new run


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and import."""
    arguments = cli.parse(Arguments, argv)
    use_device("cpu")

    from tinygpt_jax.export import import_model

    import_model(arguments.model, arguments.workdir)
    print(f"{arguments.workdir}: a run that starts from the parameters in {arguments.model}")


if __name__ == "__main__":
    cli.run(main)
