"""Make a run of a model from elsewhere: python -m experiments.import_model --model model/ --workdir runs/imported"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import cli
from tinygpt_jax.devices import use_device


@dataclass(frozen=True)
class Arguments:
    """Make a run folder of a model, to write stories with, evaluate, or train further.

    A model is a folder that experiments.export wrote in either form, or the folder or .safetensors file of a GPT-2, a
    GPT-Neo, an OpenAI GPT or a GPT-NeoX with GPT-2's tokenizer, or its name at the hub. Training starts again at step
    0, from these parameters, on any stories that have the model's vocabulary.
    """

    model: str  # folder, file or name at the hub
    workdir: Path = Path("runs")  # folder of the new run
    context_length: int | None = None  # keep only so many of a published model's positions (default: all)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and import."""
    arguments = cli.parse(Arguments, argv)
    use_device("cpu")

    from tinygpt_jax.exchange import import_model

    import_model(arguments.model, arguments.workdir, arguments.context_length)
    print(f"{arguments.workdir}: a run that starts from the parameters in {arguments.model}")


if __name__ == "__main__":
    cli.run(main)
