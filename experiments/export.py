"""Write a trained model for other programs: python -m experiments.export --workdir runs/ --to model/"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments import cli
from experiments.presets import PRESETS
from tinygpt_jax.config import FREE_TO_CHANGE, Config
from tinygpt_jax.devices import use_device

if TYPE_CHECKING:
    from tinygpt_jax.training.checkpoint import Run


@dataclass(frozen=True)
class Arguments:
    """Write a trained model's parameters (safetensors), configuration and vocabulary into a new folder.

    experiments.import_model makes a run of either form. Of the form `huggingface` the library transformers opens model
    and tokenizer; experiments/pytorch_reference.py loads the native one into PyTorch.
    """

    to: Path  # the new folder
    workdir: Path = Path("runs")  # folder of the run
    checkpoint: Literal["best", "last"] = "best"  # by validation loss, or the newest
    format: Literal["native", "huggingface"] = "native"  # our names and formulas, or a stock class of transformers


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and export."""
    arguments = cli.parse(Arguments, argv)
    use_device("cpu")

    from tinygpt_jax.training.checkpoint import open_run

    run = open_run(arguments.workdir, arguments.checkpoint)
    if arguments.format == "native":
        from tinygpt_jax.exchange.native import export_native

        export_native(run, arguments.to)
        opens = "as safetensors"
    else:
        from tinygpt_jax.exchange.hugging_face import export_hugging_face

        export_hugging_face(run, arguments.to, _card(run, arguments.workdir))
        opens = "for AutoModelForCausalLM and AutoTokenizer.from_pretrained"
    print(f"{arguments.to}: the model after {run.step:,} updates, {opens}")


def _card(run: "Run", workdir: Path) -> str:
    from tinygpt_jax.exchange.folders import portable
    from tinygpt_jax.exchange.model_card import model_card
    from tinygpt_jax.runs.checkpoint_files import checkpoints

    loss = next(saved.validation_loss for saved in checkpoints(workdir) if saved.step == run.step)
    return model_card(run, training_command(portable(run.config)), loss)


def training_command(config: Config) -> str:
    """The command that trains so: the preset that is nearest, and a flag for each setting that differs and matters."""
    began, silent = config.origin.init_from, FREE_TO_CHANGE - {"steps", "epochs", "source"}
    if config.data.source != "builtin":
        silent |= {"builtin_stories"}
    if began:  # network and vocabulary are the other model's, and so is dropout unless a flag says otherwise
        silent |= {*vars(config.model), "vocabulary", "max_vocab"}
    preset = min(PRESETS, key=lambda name: len(config.differences(PRESETS[name].config, silent)))
    before, words = PRESETS[preset].config, ["python", "-m", "experiments.train", "--preset", preset]
    if began:
        words += [*_flag("init_from", began), *_flag("dropout", config.model.dropout)]
    for group in ("model", "data", "optimizer", "training"):
        for name, value in vars(getattr(config, group)).items():
            if name not in silent and value != getattr(getattr(before, group), name):
                words += _flag(name, value)
    if config.training.steps is None and before.training.steps:
        words += _flag("epochs", config.training.epochs)
    return shlex.join(words)


def _flag(name: str, value: Any) -> list[str]:
    name = "data" if name == "source" else name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


if __name__ == "__main__":
    cli.run(main)
