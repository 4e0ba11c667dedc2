"""The explorer's file: the page, what it runs, and the model, in one HTML file that loads nothing from elsewhere.

The page's content policy names the checksums of its own script and style and forbids everything else: requests,
frames, and whatever else a story or a name might smuggle in. Data stand in elements that are not run, with every `<`
escaped.
"""

import base64
import dataclasses
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from tinygpt_jax.config import ModelConfig
from tinygpt_jax.data.grammar import STORYTELLER, read_template
from tinygpt_jax.errors import UserError
from tinygpt_jax.explorer.weights import Form, letters, pack
from tinygpt_jax.files import write_atomically
from tinygpt_jax.tokenizer import gpt2_merges
from tinygpt_jax.training.checkpoint import Run

MOST_BYTES = 64 * 10**6  # of a page: larger ones take long to open, on a phone for ever
_PAGE = Path(__file__).with_name("page")
_SCRIPTS = (  # in the order of who needs whom
    "functional model sampling tokenizer weights storyteller reading story "
    "elements text heads inside controls main start"
).split()


def write_explorer(runs: Sequence[Run], losses: Mapping[int, float | None], path: Path, form: Form = "float16") -> int:
    """Write the page of one model, and return its size in bytes.

    Args:
        runs: its checkpoints, from first to last; the page opens with the last one, and slides over all.
        losses: by step, the validation loss in nats per token where it was measured.
        path: the HTML file; one that is there is replaced.
        form: what the weights are rounded to.

    Raises:
        UserError: the page would be larger than `MOST_BYTES`, or cannot be written.
    """
    _check_size(runs, form)
    packed = [pack(run, form) for run in runs]
    run = runs[-1]
    builtin = run.config.data.source == "builtin"
    facts: dict[str, Any] = {
        "config": dataclasses.asdict(run.config.model),
        "source": "built-in stories" if builtin else Path(run.config.data.source).name,
        "kept": None if run.tokenizer.name == "gpt2" else run.tokenizer.kept.tolist(),
        "merges": "\n".join(gpt2_merges()),
        "parameters": packed[-1][0],
        "form": form,
        "checkpoints": [{"step": one.step, "validation_loss": losses.get(one.step)} for one in runs],
        "storyteller": dict(zip(("template", "words"), read_template(STORYTELLER), strict=True)) if builtin else None,
    }
    data = [_data("facts", json.dumps(facts, separators=(",", ":")))]
    data += [_data(f"weights-{number}", text) for number, (_, text) in enumerate(packed)]
    # Of the file's text nothing but the checksum is known to the policy, so what is between the tags is not changed.
    script = "\n" + '"use strict";\n' + "\n".join(_read(f"{name}.js") for name in _SCRIPTS)
    whole, style = "\n" + _read("whole.js"), "\n" + _read("style.css")
    page = Template(_read("page.html")).substitute(
        script=script,
        whole=whole,
        style=style,
        script_hash=_hash(script),
        whole_hash=_hash(whole),
        style_hash=_hash(style),
        data="\n".join(data),
        title=html.escape(f"Inside a model that learned from {facts['source']}"),
    )
    content = page.encode()
    write_atomically(path, content)
    return len(content)


def fits(config: ModelConfig, form: Form = "float16") -> int:
    """How many checkpoints of such a model a page of `write_explorer` holds; 0 where the model is too large."""
    return int(MOST_BYTES // letters(config, form))


def _check_size(runs: Sequence[Run], form: Form) -> None:
    model = runs[-1].config.model
    if len(runs) <= fits(model, form):
        return
    size, remedies = len(runs) * letters(model, form), []
    if form == "float16" and len(runs) <= fits(model, "int8"):
        remedies.append(f"--weights int8 makes it {size / 2e6:,.0f} MB")
    if len(runs) > 1 and fits(model, form):
        remedies.append(f"a single checkpoint {size / len(runs) / 1e6:,.0f} MB")
    remedies.append("experiments.generate and docs/library.md look into models of any size")
    limit = f"more than the {MOST_BYTES / 1e6:.0f} MB that browsers open well"
    raise UserError(f"the page would have {size / 1e6:,.0f} MB, {limit}: {'; '.join(remedies)}")


def _data(name: str, text: str) -> str:
    return f'<script type="text/plain" id="{name}">{text.replace("<", chr(92) + "u003c")}</script>'


def _read(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
