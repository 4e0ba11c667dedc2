"""Draw a run's pictures and page again: python -m experiments.report --workdir runs/"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import cli


@dataclass(frozen=True)
class Arguments:
    """Draw plots/*.png and report.html of a run from its folder; the run may be under way or finished."""

    workdir: Path = Path("runs")  # folder of the run


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, draw, and say where."""
    arguments = cli.parse(Arguments, argv)

    from tinygpt_jax.report import write_report

    print(f"pictures: {arguments.workdir / 'plots'}\npage: {write_report(arguments.workdir)}")


if __name__ == "__main__":
    cli.run(main)
