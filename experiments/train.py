"""Train a model, or go on with a run: python -m experiments.train --workdir runs/"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments import cli, presets
from tinygpt_jax.config import Config
from tinygpt_jax.devices import Device, has_accelerator, use_device


@dataclass(frozen=True)
class Arguments:
    """Train a GPT to write stories. The same command again goes on where the run stopped.

    Every setting below starts from the preset, or from the run's own configuration when there is one.
    """

    workdir: Path = Path("runs")  # folder of the run; made if needed
    preset: str | None = None  # quickstart, tinystories or tinystories-modern (default: what the device can do)
    device: Device = "auto"  # gpu fails where there is none
    config: Config = field(default_factory=Config)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and train."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Twice: the first time for the flags that decide which defaults the others have.
    first = cli.parse(Arguments, argv)
    use_device(first.device)
    start, why = _starting_point(first)
    arguments = cli.parse(Arguments, argv, default=dataclasses.replace(first, config=start))
    print(why, flush=True)

    from tinygpt_jax.training.loop import train

    train(arguments.config, arguments.workdir)


def _starting_point(arguments: Arguments) -> tuple[Config, str]:
    saved = arguments.workdir / "config.json"
    if arguments.preset:
        return presets.get(arguments.preset).config, f"preset {arguments.preset}: {presets.get(arguments.preset).about}"
    if saved.is_file():
        return Config.from_json(saved.read_text(encoding="utf-8")), f"going on with the run in {arguments.workdir}"
    name = "tinystories" if has_accelerator() else "quickstart"
    reason = "an accelerator is here" if has_accelerator() else "there is no accelerator here"
    others = " or ".join(other for other in presets.PRESETS if other != name)
    return presets.get(name).config, f"preset {name}, because {reason} (--preset {others} to choose another)"


if __name__ == "__main__":
    cli.run(main)
