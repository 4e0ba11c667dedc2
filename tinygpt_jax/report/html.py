"""The parts of a self-contained HTML page: nothing is loaded from elsewhere, and nothing runs.

Every function escapes the text it is given and returns HTML, so whatever stories, file names and settings contain,
it is shown and not obeyed. The page's content policy forbids scripts and outside resources besides.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1d1f; --soft: #5d6167; --paper: #fbfbfa; --card: #fff; --line: #dfe0e2;
        --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e8ea; --soft: #a2a7ae; --paper: #17181a; --card: #212326; --line: #383b40; --mark: #6cc0f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.6rem 0 .8rem; font-size: 1.2rem; }
h3 { margin: 1.6rem 0 .4rem; font-size: 1rem; }
p { margin: .4rem 0; }
.soft, figcaption, small, caption { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.card { padding: .7rem .9rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.card b { display: block; font-size: 1.55rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card span, .card small, blockquote small { display: block; font-size: .88rem; }
.notes { padding: .6rem .9rem .6rem 2rem; border: 1px solid var(--line); border-left: .3rem solid var(--mark); }
figure { margin: 0 0 1.6rem; }
img { display: block; width: 100%; height: auto; padding: .6rem; background: #fff; border: 1px solid var(--line);
      border-radius: .5rem; }
@media (max-width: 40rem) { img { padding: .15rem; border-radius: .2rem; } }
figcaption { margin-top: .4rem; font-size: .88rem; }
.tables { columns: 2 23rem; column-gap: 2rem; }
table { width: 100%; margin: 0 0 1.4rem; border-collapse: collapse; break-inside: avoid; font-size: .92rem; }
caption { padding: .2rem 0; text-align: left; font-weight: 600; }
th, td { padding: .22rem .4rem .22rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { width: 48%; font-weight: 400; }
td { font-variant-numeric: tabular-nums; }
tr.marked th, tr.marked td { font-weight: 600; }
tr.marked th::before { content: "\\25CF\\00A0"; color: var(--mark); }
tr.marked small { font-weight: 400; }
blockquote { margin: 0 0 .8rem; padding: .6rem .9rem; background: var(--card); border: 1px solid var(--line);
             border-radius: .5rem; white-space: pre-wrap; }
"""


def page(title: str, subtitle: str, parts: Iterable[str]) -> bytes:
    """A whole page of `parts`, which are HTML."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="soft">{escape(subtitle)}</p>
{"".join(parts)}
</body>
</html>
"""
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


def picture(png: bytes, alternative: str, caption: str) -> str:
    """A PNG held in the page itself, with a text for those who do not see it."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alternative)}">'
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


def stories(prompt: str, texts: Iterable[tuple[str, str]]) -> str:
    """What was written from one prompt: (when, text), in order."""
    title = f"From \N{LEFT DOUBLE QUOTATION MARK}{prompt}\N{RIGHT DOUBLE QUOTATION MARK}" if prompt else "From nothing"
    quotes = (f"<blockquote><small>{escape(when)}</small>{escape(text)}</blockquote>\n" for when, text in texts)
    return f"<h3>{escape(title)}</h3>\n{''.join(quotes)}"
