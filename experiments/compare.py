"""Several runs beside each other, and beside the reference curves: python -m experiments.compare runs/a runs/b"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from experiments import cli
from tinygpt_jax.errors import UsageError
from tinygpt_jax.files import check_output


@dataclass(frozen=True)
class Arguments:
    """Compare runs: their figures, what differs in their settings, and whether a preset's run goes as it should.

    Runs that differ only in their seed are a group, with mean and spread. A run of a preset that has reference curves
    is compared with them, and told from which step on it lies outside their band. Runs may be under way.
    """

    runs: Positional[tuple[Path, ...]]  # folders of runs
    to: Path | None = None  # also write a page with their curves, such as compare.html; only a page is replaced
    json: bool = False  # print one JSON object


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, read, and print."""
    arguments = cli.parse(Arguments, argv)
    if not arguments.runs:
        raise UsageError("give the folders of runs: python -m experiments.compare runs/a runs/b")
    if arguments.to is not None:
        check_output("--to", arguments.to, "page")

    from tinygpt_jax.report.comparison import differences, figures, problems, read_groups, remarks, told, verdict
    from tinygpt_jax.report.comparison_page import table, write_comparison
    from tinygpt_jax.report.reference import shipped

    groups, references = read_groups(arguments.runs), shipped()
    records = {folder: record for group in groups for folder, record in group.records.items()}
    verdicts = {folder: verdict(record, references) for folder, record in records.items() if references}
    if arguments.to is not None:
        write_comparison(arguments.to, groups, verdicts, references)
    if arguments.json:
        found: dict[str, Any] = {
            "groups": {
                group.name: {"folders": list(group.records), "copies": dict(group.copies), **figures(group)}
                for group in groups
            },
            "differences": differences(groups),
            "reference": {folder: asdict(each) for folder, each in verdicts.items()},
        }
        print(json.dumps(found, indent=1))
        return
    rows = table(groups)
    print(_aligned([["", *next(iter(rows.values()))], *([name, *cells.values()] for name, cells in rows.items())]))
    if different := differences(groups):
        print()
        print(_aligned([["settings that differ", *rows], *([name, *each] for name, each in different.items())]))
    if lines := [*remarks(groups), *told(verdicts), *problems(groups)]:
        print()
        print("\n".join(lines))
    if arguments.to is not None:
        print(f"\npage: {arguments.to}")


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


if __name__ == "__main__":
    cli.run(main)
