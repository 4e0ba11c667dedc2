"""Sections of figures, each row with what it means: as a file of a run's folder, as JSON, and as a table of text.

`stories.json` in a run's folder is a `Judgement`.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tinygpt_jax.errors import UserError
from tinygpt_jax.files import read_text, write_atomically

FILE = "stories.json"
Unit = Literal["share", "count", "number", "nats"]
Cell = float | str | None
_MOST = 1000  # rows, columns and notes of a section that may be a stranger's


@dataclass(frozen=True)
class Row:
    """One line of a section: its figures by column, of one unit (texts are shown as they are), and its meaning."""

    name: str
    cells: Mapping[str, Cell]
    unit: Unit
    means: str


@dataclass(frozen=True)
class Section:
    """Rows that belong together."""

    name: str
    about: str
    rows: list[Row]
    notes: list[str] = dataclasses.field(default_factory=list)  # examples, one to a line

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in the order in which they occur."""
        return list(dict.fromkeys(column for row in self.rows for column in row.cells))


@dataclass(frozen=True)
class Judgement:
    """All figures about the stories of a checkpoint."""

    step: int  # updates that the model had learned from
    about: str  # which stories, and how they were written
    sections: list[Section]

    def to_json(self) -> str:
        """One object of these fields. What is no finite number, of a diverged model, is null."""
        sections = [dataclasses.asdict(section) for section in self.sections]
        for section in sections:
            for row in section["rows"]:
                row["cells"] = {name: _finite(cell) for name, cell in row["cells"].items()}
        return json.dumps({"step": self.step, "about": self.about, "sections": sections}, ensure_ascii=False)


def write_judgement(workdir: Path, judgement: Judgement) -> Path:
    """Keep a judgement in a run's folder.

    Raises:
        UserError: the folder cannot be written to.
    """
    path = workdir / FILE
    write_atomically(path, (judgement.to_json() + "\n").encode("utf-8", errors="replace"))
    return path


def read_judgement(workdir: Path) -> Judgement | None:
    """The judgement that lies in a run's folder; None where there is none. Nothing in the file is trusted.

    Raises:
        UserError: it is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        document = json.loads(read_text(path, errors="replace"))
        sections = [_section(section) for section in _list(document["sections"])]
        return Judgement(_whole(document["step"]), _text(document["about"]), sections)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{FILE} is damaged: measure anew with python -m experiments.evaluate --workdir {workdir} --stories"
        ) from None


def table(section: Section) -> str:
    """A section as text: its figures, and below what each row means, once where several mean the same."""
    width = max(18, *(len(row.name) for row in section.rows)) + 6 if section.rows else 0
    columns = [(column, max(12, len(column) + 2)) for column in section.columns]
    lines = [f"{section.name}: {section.about}"]
    if section.rows:
        lines.append(" " * width + "".join(f"{column:>{size}}" for column, size in columns))
    for row in section.rows:
        cells = "".join(f"{shown(row.cells.get(column), row.unit):>{size}}" for column, size in columns)
        lines.append(f"{row.name:<{width}}{cells}")
    for means, group in itertools.groupby(section.rows, key=lambda row: row.means):
        first, *others = (row.name for row in group)
        lines.append(f"{first + ' ...' * bool(others):<{width}}{means}")
    return "\n".join([*lines, *section.notes])


def shown(cell: Cell, unit: Unit) -> str:
    """A figure as it is printed."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    return {"share": f"{cell:.1%}", "count": f"{cell:,.0f}", "number": f"{cell:.3g}", "nats": f"{cell:.4f}"}[unit]


def _finite(cell: Cell) -> Cell:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _section(value: Any) -> Section:
    rows = [_row(row) for row in _list(value["rows"])]
    return Section(_text(value["name"]), _text(value["about"]), rows, [_text(note) for note in _list(value["notes"])])


def _row(value: Any) -> Row:
    if value["unit"] not in get_args(Unit) or len(value["cells"]) > _MOST:
        raise ValueError
    cells = {_text(column): _cell(cell) for column, cell in value["cells"].items()}
    return Row(_text(value["name"]), cells, value["unit"], _text(value["means"]))


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not -1e15 <= value <= 1e15:
        raise ValueError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 1e15:
        raise ValueError
    return value


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > _MOST:
        raise ValueError
    return value
