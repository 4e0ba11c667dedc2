"""Run docs/tour.ipynb and keep what it shows: python -m experiments.measuring.tour

Needs `pip install -e ".[tour]"`. What is kept has no paths, times or warnings in it, so that a change is read as one.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import cli
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import write_atomically

TOUR = Path(__file__).parents[2] / "docs" / "tour.ipynb"
MINUTES = 30  # for one cell, on a busy machine


@dataclass(frozen=True)
class Arguments:
    """Run the tour from its first cell to its last, and store it with what it shows."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, run, store."""
    cli.parse(Arguments, argv)
    tour = run(json.loads(TOUR.read_text(encoding="utf-8")))
    write_atomically(TOUR, as_text(tour).encode())


def run(tour: dict[str, Any]) -> dict[str, Any]:
    """The notebook with what its cells show now, run in a fresh kernel of this Python beside docs/.

    Raises:
        UserError: a cell fails, or there is no nbclient or ipykernel.
    """
    try:
        import ipykernel  # noqa: F401  # the kernel, which nbclient starts
        import nbclient
        import nbformat
    except ImportError as error:
        raise UserError(f'{error.name} is missing: pip install -e ".[tour]"') from None
    notebook = nbformat.reads(json.dumps(tour), as_version=4)
    try:
        nbclient.NotebookClient(
            notebook, timeout=60 * MINUTES, kernel_name="python3", resources={"metadata": {"path": str(TOUR.parent)}}
        ).execute()
    except nbclient.exceptions.CellExecutionError as error:
        raise UserError(f"a cell of the tour fails with {error.ename}: {error.evalue}") from None
    return json.loads(nbformat.writes(notebook))


def as_text(tour: dict[str, Any]) -> str:
    """The notebook as it is stored: without warnings, and without what differs from one run or machine to the next."""
    cells = [{**cell, "metadata": _tags(cell["metadata"])} for cell in tour["cells"]]
    for number, cell in enumerate((cell for cell in cells if cell["cell_type"] == "code"), 1):
        cell["execution_count"] = number
        cell["outputs"] = _joined(output for output in cell["outputs"] if output.get("name") != "stderr")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {**tour, "cells": cells, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _tags(metadata: dict[str, Any]) -> dict[str, Any]:
    """Of a cell's metadata only the tags, which say how what it shows is compared."""
    return {name: value for name, value in metadata.items() if name == "tags"}


def _joined(outputs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is printed arrives in pieces of any size; here it is one."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        if joined and output["output_type"] == joined[-1]["output_type"] == "stream":
            joined[-1] = {**output, "text": [*joined[-1]["text"], *output["text"]]}
        else:
            joined.append(output)
    return joined


if __name__ == "__main__":
    cli.run(main)
