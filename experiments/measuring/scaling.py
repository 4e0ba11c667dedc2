"""Models of several sizes on up to 512 H100s, compiled and not run: python -m experiments.measuring.scaling

Prints the tables of docs/scaling.md, a row as soon as it is known. A row takes half a minute to some minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments import cli, presets
from tinygpt_jax.config import Config, ModelConfig
from tinygpt_jax.errors import require
from tinygpt_jax.estimate.compiling import Request, state_bytes
from tinygpt_jax.estimate.estimation import Estimate, estimate, room


@dataclass(frozen=True)
class Size:
    """A model in GPT-2's manner, and the rows that a device takes of each batch: 8,192 tokens of all sizes."""

    n_layers: int
    d_model: int
    n_heads: int
    context_length: int = 1024
    fsdp: int = 1  # over how many devices its state lies in parts, where there are so many

    @property
    def rows(self) -> int:
        """Of each device."""
        return 8192 // self.context_length


SIZES = {
    "124M": Size(12, 768, 12),
    "350M": Size(24, 1024, 16),
    "1.5B": Size(48, 1600, 25),
    "7B": Size(32, 4096, 32, context_length=2048, fsdp=8),
}
COLUMNS = (
    "model, devices, mesh, tokens an update, held GiB, at most GiB, all-reduce GB, all-gather GB, reduce-scatter GB, "
    "to other machines GB, computing ms, exchanging ms, waiting ms, efficiency"
)


@dataclass(frozen=True)
class Arguments:
    """What training takes on many H100s: memory of each device, and what each sends to others in an update."""

    sizes: tuple[str, ...] = tuple(SIZES)  # 124M, 350M, 1.5B, 7B
    devices: tuple[int, ...] = (1, 8, 64, 512)  # how many, in machines of 8
    fsdp: int | None = None  # over how many the state lies in parts (default: 7B over 8, the others whole)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, compile, and print."""
    arguments = cli.parse(Arguments, argv)
    for name in arguments.sizes:
        require(name in SIZES, "sizes", name, f"there are: {', '.join(SIZES)}")
    names = COLUMNS.split(", ")
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for name in arguments.sizes:
        for devices in arguments.devices:
            size = SIZES[name]
            fsdp = min(devices, arguments.fsdp or size.fsdp)
            cells = row(configuration(size, devices), devices, f"data={devices // fsdp},fsdp={fsdp}")
            cells += [""] * (len(names) - 2 - len(cells))
            print(f"| {' | '.join([name, str(devices), *cells])} |", flush=True)


def configuration(size: Size, devices: int) -> Config:
    """GPT-2's architecture in that size, for a batch of so many devices."""
    model = ModelConfig(
        context_length=size.context_length,
        n_layers=size.n_layers,
        n_heads=size.n_heads,
        d_model=size.d_model,
        d_ff=4 * size.d_model,
        dropout=0.0,
        activation="gelu",
        norm="pre",
        positions="learned",
    )
    config = presets.get("tinystories-modern").config
    optimizer = replace(config.optimizer, matrices="adamw")  # GPT-2's, and the larger state of the two
    training = replace(config.training, batch_size=size.rows * devices)
    return replace(config, model=model, optimizer=optimizer, training=training)


def row(config: Config, devices: int, mesh: str) -> list[str]:
    """The cells behind the number of devices; with rematerialisation where nothing else fits."""
    tokens = f"{config.training.batch_size * config.model.context_length:,}"
    held = state_bytes(config, devices, mesh)
    if held > room("h100"):
        return [mesh, tokens, f"{held / 2**30:.1f}", "does not fit"]
    found = estimate(Request("h100", config.to_json(), devices, mesh=mesh))
    if found.most_bytes > room("h100"):
        config = replace(config, training=replace(config.training, remat=True))
        found, mesh = estimate(Request("h100", config.to_json(), devices, mesh=mesh)), f"{mesh}, remat"
    return [mesh, tokens, *_measures(found)]


def _measures(found: Estimate) -> list[str]:
    sent = [
        found.sent[kind].bytes if kind in found.sent else 0 for kind in ("all-reduce", "all-gather", "reduce-scatter")
    ]
    computing = found.total.seconds
    return [
        *(f"{size / 2**30:.1f}" for size in (found.held_bytes, found.most_bytes)),
        *(f"{size / 1e9:.2f}" for size in (*sent, found.total_sent.between_machines)),
        *(f"{x * 1e3:.0f}" for x in (computing, found.total_sent.seconds, found.waiting_seconds)),
        f"{computing / found.seconds:.0%}",
    ]


if __name__ == "__main__":
    cli.run(main)
