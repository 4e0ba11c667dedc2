"""Train a model, or go on with a run: python -m experiments.train --workdir runs/"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tyro.conf import Suppress

from experiments import cli, presets
from tinygpt_jax.config import Config, ModelConfig, OriginConfig
from tinygpt_jax.devices import Device, describe_devices, has_accelerator, restart_with_huge_pages, use_device
from tinygpt_jax.distributed.place import find_place
from tinygpt_jax.runs.checkpoint_files import saved_config


@dataclass(frozen=True)
class Start:
    """The flags that decide which defaults the others have."""

    workdir: Path = Path("runs")  # folder of the run; made if needed
    preset: str | None = None  # quickstart, laptop, tinystories or tinystories-modern (default: what the device can do)
    device: Device = "auto"  # gpu fails where there is none
    deterministic: bool = False  # the same bits in every run on a GPU too, at some cost in speed
    mesh: str | None = None  # how the devices share the work, such as data=4,fsdp=2 (default: all on data)
    coordinator: str | None = None  # several processes: HOST:PORT of process 0 (default: as the cluster says)
    num_processes: int | None = None  # how many there are
    process_id: int | None = None  # this one's number, from 0
    join_seconds: int = 300  # how long they wait for each other at the start


@dataclass(frozen=True)
class Arguments(Start):
    """Train a GPT to write stories. The same command again goes on where the run stopped.

    Every setting starts from the preset, or from the run's own configuration when there is one, or from that of the
    model in --init-from; the network is in any case the latter's. Of --steps and --epochs the last one given counts.
    """

    config: Config = field(default_factory=Config)


@dataclass(frozen=True)
class ModelFlags(ModelConfig):
    """The shape of the network. How many tokens it knows follows from the stories, and is no flag."""

    vocab_size: Suppress[int] = ModelConfig.vocab_size


@dataclass(frozen=True)
class OriginFlags(OriginConfig):
    """A trained model to go on from, with a fresh optimizer and schedule."""

    sha256: Suppress[str | None] = None


@dataclass(frozen=True)
class InitFrom:
    """The flag that decides which model the others describe."""

    init_from: str | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and train."""
    arguments, why = parse(argv)
    print(why, flush=True)

    from tinygpt_jax.distributed.together import is_first
    from tinygpt_jax.training.loop import train
    from tinygpt_jax.training.sharding import make_mesh

    if train(arguments.config, arguments.workdir, mesh=make_mesh(arguments.mesh)) and is_first():
        from tinygpt_jax.explorer import fits
        from tinygpt_jax.report import write_report

        # Also of a run that was finished already: it may have been killed after its last checkpoint and before this.
        print(f"The run as a page: {write_report(arguments.workdir)}")
        saved = saved_config(arguments.workdir)
        if saved and fits(saved.model):
            print(f"A page to look into the model: {explorer_command(arguments.workdir, saved)}")


def explorer_command(workdir: Path, config: Config) -> str:
    """What makes the page of a run, with the slider where checkpoints of the whole run were kept for it."""
    words = ["python", "-m", "experiments.explorer", "--workdir", str(workdir), "--to", str(workdir / "explorer.html")]
    return shlex.join([*words, *(["--checkpoints", "all"] if config.training.checkpoints == "all" else [])])


def parse(argv: Sequence[str] | None = None) -> tuple[Arguments, str]:
    """What the flags ask for, and from where their defaults come. Decides the device too, which some depend on."""
    argv = sys.argv[1:] if argv is None else argv
    start = cli.parse(Start, argv, others=True)
    if place := find_place(start.coordinator, start.num_processes, start.process_id):
        from tinygpt_jax.distributed.together import join

        join(place, start.join_seconds)
    use_device(start.device, start.deterministic)
    if place:
        print(f"training together: {describe_devices()}", flush=True)
    origin, why = _starting_point(start, cli.parse(InitFrom, argv, others=True).init_from)
    arguments = with_config(Arguments, argv, start, origin)
    if start.preset and arguments.config != origin:  # what is said of the preset may be true no more
        why = f"starting from preset {start.preset}, with your changes"
    return arguments, why


def with_config(cls: type[Any], argv: Sequence[str], start: Any, origin: Config) -> Any:
    """An instance of `cls`, which is the dataclass of `start` with a `config`: of the flags, over those of `origin`."""
    flags = replace(origin, model=ModelFlags(**vars(origin.model)), origin=OriginFlags(**vars(origin.origin)))
    arguments = cli.parse(cls, argv, default=cls(**vars(start), config=flags))
    given = arguments.config
    config = replace(given, model=ModelConfig(**vars(given.model)), origin=OriginConfig(**vars(given.origin)))
    lengths = [name for word in argv if (name := word.partition("=")[0]) in ("--steps", "--epochs")]
    if lengths[-1:] == ["--epochs"]:  # or the steps of the preset, or of the run so far, would override them
        config = replace(config, training=replace(config.training, steps=None))
    return replace(arguments, config=config)


def _starting_point(start: Start, init_from: str | None) -> tuple[Config, str]:
    saved = saved_config(start.workdir)
    if saved is not None and not start.preset:
        return saved, f"going on with the run in {start.workdir}"
    config, why = _preset(start.preset)
    if init_from is None:
        return config, why
    if saved is not None and saved.origin.init_from == init_from:  # the other model may be gone
        trained = saved
    else:
        from tinygpt_jax.exchange import open_model

        trained = open_model(init_from).config
    if not start.preset:
        config, why = trained, f"starting from the model in {init_from}, with its own settings"
    data = replace(config.data, vocabulary=trained.data.vocabulary, max_vocab=trained.data.max_vocab)
    return replace(config, model=trained.model, data=data, origin=OriginConfig(init_from)), why


def _preset(name: str | None) -> tuple[Config, str]:
    if name:
        preset = presets.get(name)
        return preset.config, f"starting from preset {name}: {preset.about}"
    name = "tinystories" if has_accelerator() else "quickstart"
    reason = "an accelerator is here" if has_accelerator() else "there is no accelerator here"
    others = " or ".join(other for other in presets.PRESETS if other != name)
    return presets.get(name).config, f"preset {name}, because {reason} (--preset {others} to choose another)"


if __name__ == "__main__":
    restart_with_huge_pages()
    cli.run(main)
