"""The parts of a self-contained HTML page: nothing is loaded from elsewhere, and nothing runs.

Every function escapes the text it is given and returns HTML, so whatever stories, file names and settings contain,
it is shown and not obeyed. The content policy in `page.html`, where the style is too, forbids scripts and outside
resources besides.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from itertools import takewhile
from pathlib import Path
from string import Template

_SKELETON = Path(__file__).with_name("page.html")


def page(title: str, subtitle: str, parts: Iterable[str]) -> bytes:
    """A whole page of `parts`, which are HTML."""
    skeleton = Template(_SKELETON.read_text(encoding="utf-8"))
    text = skeleton.substitute(title=escape(title), subtitle=escape(subtitle), parts="".join(parts))
    # JSON may hold halves of surrogate pairs, which UTF-8 has no bytes for.
    return text.encode("utf-8", errors="replace")


def heading(text: str, explanation: str = "") -> str:
    """The start of a section."""
    return f"<h2>{escape(text)}</h2>\n" + (f'<p class="soft">{escape(explanation)}</p>\n' if explanation else "")


def cards(figures: Iterable[tuple[str, str, str]]) -> str:
    """Large figures side by side: (what it is, the figure, its unit or where it is from)."""
    boxes = (
        f'<div class="card"><span>{escape(name)}</span><b>{escape(figure)}</b><small>{escape(unit)}</small></div>\n'
        for name, figure, unit in figures
    )
    return f'<div class="cards">\n{"".join(boxes)}</div>\n'


def notes(lines: Sequence[str]) -> str:
    """Things the reader should know first."""
    return f'<ul class="notes">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>\n' if lines else ""


def picture(image: bytes, alternative: str, caption: str) -> str:
    """A PNG or SVG held in the page itself, with a text for those who do not see it."""
    kind, data = "png" if image.startswith(b"\x89PNG") else "svg+xml", base64.b64encode(image).decode("ascii")
    return (
        f'<figure><img src="data:image/{kind};base64,{data}" alt="{escape(alternative)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def tables(groups: Iterable[tuple[str, Sequence[tuple[str, str, str]]]]) -> str:
    """Tables of (name, value, remark) rows under their captions, empty ones left out. A remark marks its row."""
    return f'<div class="tables">\n{"".join(_table(caption, rows) for caption, rows in groups if rows)}</div>\n'


def _table(caption: str, rows: Iterable[tuple[str, str, str]]) -> str:
    lines = []
    for name, value, remark in rows:
        mark, aside = (' class="marked"', f" <small>({escape(remark)})</small>") if remark else ("", "")
        lines.append(f'<tr{mark}><th scope="row">{escape(name)}</th><td>{escape(value)}{aside}</td></tr>\n')
    return f"<table><caption>{escape(caption)}</caption>\n{''.join(lines)}</table>\n"


def grid(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], meanings: Sequence[str] | None = None
) -> str:
    """A table of several columns: their names, the first of which is that of the rows, and each row's cells.

    Figures stay on one line; a table that is wider than the page scrolls sideways. `meanings` are sentences in a last
    column, one for each row; where neighbours have the same, it stands there once.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    lines = []
    for number, (name, *cells) in enumerate(rows):
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        if meanings and (number == 0 or meanings[number] != meanings[number - 1]):
            same = len(list(takewhile(meanings[number].__eq__, meanings[number:])))
            values += f'<td class="prose" rowspan="{same}">{escape(meanings[number])}</td>'
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{values}</tr>\n')
    table = f"<table><caption>{escape(caption)}</caption>\n<tr>{head}</tr>\n{''.join(lines)}</table>"
    return f'<div class="grid" tabindex="0">{table}</div>\n'  # so that the keyboard can scroll it


def stories(prompt: str, texts: Iterable[tuple[str, str]]) -> str:
    """What was written from one prompt: (when, text), in order."""
    title = f"From \N{LEFT DOUBLE QUOTATION MARK}{prompt}\N{RIGHT DOUBLE QUOTATION MARK}" if prompt else "From nothing"
    quotes = (f"<blockquote><small>{escape(when)}</small>{escape(text)}</blockquote>\n" for when, text in texts)
    return f"<h3>{escape(title)}</h3>\n{''.join(quotes)}"
