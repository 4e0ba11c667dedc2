"""docs/tour.ipynb: what it shows is what its cells compute, and every formula has its function and its test."""

import ast
import importlib.util
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.double_softmax import floor
from experiments.measuring import tour
from tests import reference
from tinygpt_jax import functional as F
from tinygpt_jax.errors import UserError

TEXT = tour.TOUR.read_text(encoding="utf-8")
STORED = json.loads(TEXT)
PROSE = ["".join(cell["source"]) for cell in STORED["cells"] if cell["cell_type"] == "markdown"]
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")


def shown(cell):
    """What a cell shows, as text: what it prints, and of a picture its title."""
    texts = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            texts.append("".join(output["text"]))
        else:
            texts.append(f"picture: {output['metadata']['image/png']['alt']}")
    return "\n".join(texts)


def differences(stored, now, tags=()):
    """Lines of what is shown now that are not as stored; numbers may differ by rounding.

    What follows from training, which amplifies rounding, is tagged: of `trained` the numbers may differ by a quarter,
    and what was `written`, or is drawn, by a trained model may be anything but nothing.
    """
    if "written" in tags:
        return [] if bool(stored.strip()) == bool(now.strip()) else [f"{stored!r} was shown, and now {now!r}"]
    lines = [text.replace("#", "").splitlines() for text in (stored, now)]  # bars follow the numbers beside them
    if len(lines[0]) != len(lines[1]):
        return [f"{len(lines[0])} lines were shown, and now {len(lines[1])}"]
    return [
        f"{before!r} was shown, and now {after!r}"
        for before, after in zip(*lines, strict=True)
        if [word.split() for word in NUMBER.split(before)] != [word.split() for word in NUMBER.split(after)]
        or not all(map(near, NUMBER.findall(before), NUMBER.findall(after), ["trained" in tags] * len(before)))
    ]


def near(before, after, loosely):
    """Whether two numbers are equal up to rounding, the last place that is shown included; whole ones exactly."""
    one, other = (float(text.replace(",", "")) for text in (before, after))
    if loosely and "." in before:
        return abs(one - other) <= 0.25 * abs(one) + 0.1
    digits, _, exponent = before.partition("e")
    last_place = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2])) if "." in digits else 0
    return abs(one - other) <= 1.01 * last_place + (2e-3 * abs(one) if last_place else 0)


@pytest.mark.parametrize(
    ("stored", "now", "tags", "differ"),
    [
        ("loss 7.02, ln V = 7.02", "loss  7.03, ln V = 7.02", (), False),
        ("loss 7.02, ln V = 7.02", "loss 7.09, ln V = 7.02", (), True),
        ("loss 7.02", "less 7.02", (), True),
        ("norm 2.32e-04", "norm 2.33e-04", (), False),
        ("norm 2.32e-04", "norm 2.32e-03", (), True),
        ("1,122 tokens", "1,123 tokens", (), True),
        ("0.000", "-0.000", (), False),
        ("True", "False", (), True),
        ("1 2", "1 2 3", (), True),
        ("a", "a\nb", (), True),
        ("update 250: 0.75 nats", "update 250: 0.81 nats", ("trained",), False),
        ("update 250: 0.75 nats", "update 250: 1.75 nats", ("trained",), True),
        ("update 250: 0.75 nats", "update 249: 0.75 nats", ("trained",), True),
        ("Lily 2.77 ####", "Lily 2.70 ###", ("trained",), False),
        ("Once upon a time", "A long time ago", ("written",), False),
        ("Once upon a time", "", ("written",), True),
    ],
)
def test_a_difference_is_seen(stored, now, tags, differ):
    assert bool(differences(stored, now, tags)) is differ


@pytest.mark.skipif(
    not (importlib.util.find_spec("nbclient") and importlib.util.find_spec("ipykernel")),
    reason='running the tour needs: pip install -e ".[tour]"',
)
def test_the_cells_give_what_is_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path))
    now = json.loads(tour.as_text(tour.run(STORED)))
    for before, after in zip(STORED["cells"], now["cells"], strict=True):
        assert differences(shown(before), shown(after), before["metadata"].get("tags", ())) == [], before["id"]


def test_it_is_stored_as_its_command_stores_it():
    """With its outputs, in order, without anything of one machine or moment; and short enough for one sitting."""
    assert tour.as_text(STORED) == TEXT
    assert len(STORED["cells"]) <= 60
    kinds = {output["output_type"] for cell in STORED["cells"] for output in cell.get("outputs", [])}
    assert kinds == {"stream", "display_data"}  # and no error
    silent = [cell["id"] for cell in STORED["cells"][2:] if cell["cell_type"] == "code" and not shown(cell)]
    assert silent == []
    for path in ("/tmp", "/root", "/home", "/Users", "C:\\\\", str(Path.home()), str(Path.cwd())):
        assert path not in TEXT


def test_what_differs_between_machines_is_not_stored():
    stream = {"output_type": "stream", "name": "stdout"}
    outputs = [{**stream, "text": ["a\n"]}, {**stream, "name": "stderr", "text": ["/tmp/x"]}, {**stream, "text": ["b"]}]
    cell = {"cell_type": "code", "id": "one", "source": ["1"], "outputs": outputs, "execution_count": 7}
    cell["metadata"] = {"execution": {"iopub.execute_input": "2026-01-01"}, "tags": ["trained"]}
    noisy = {"cells": [cell], "metadata": {"language_info": {"version": "3.11"}}, "nbformat": 4, "nbformat_minor": 5}
    text = tour.as_text(noisy)
    assert "2026" not in text and "3.11" not in text and "/tmp" not in text
    [kept] = json.loads(text)["cells"]
    assert kept["execution_count"] == 1 and kept["metadata"] == {"tags": ["trained"]}
    assert kept["outputs"] == [{**stream, "text": ["a\n", "b"]}]  # however the prints were gathered on their way


def test_a_cell_that_fails_is_said_in_a_line():
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cell = {"cell_type": "code", "id": "one", "source": ["1 / 0"], "metadata": {}, "outputs": []}
    broken = {**STORED, "cells": [{**cell, "execution_count": None}]}
    with pytest.raises(UserError, match=r"^a cell of the tour fails with ZeroDivisionError: division by zero$"):
        tour.run(broken)


def test_every_formula_stands_beside_its_function_and_its_test():
    formulas = [text for text in PROSE if "$$" in text]
    assert len(formulas) >= 12
    for text in formulas:
        targets = [target for _, target in LINK.findall(text)]
        assert any(target.startswith(("../tinygpt_jax/", "../experiments/")) for target in targets), text
        assert any(target.startswith("../tests/") for target in targets), text


def test_what_it_links_to_exists():
    links = [link for text in PROSE for link in LINK.findall(text)]
    assert len(links) > 40
    for names, target in links:
        path = tour.TOUR.parent / target
        assert path.exists(), target
        if path.suffix == ".py":
            defined = {getattr(node, "name", "") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))}
            for name in re.findall(r"`([^`]+)`", names):
                assert name.rpartition(".")[2] in defined, f"{name} is not in {target}"


def test_softmax_twice_reports_at_least_its_floor(draw):
    """Reached by certainty that is right; and the gradient of a network that knows nothing carries 1 / V."""
    size = 50

    def right(logits):
        return F.cross_entropy(logits, jnp.array([3]))

    def twice(logits):
        return right(jax.nn.softmax(logits))

    logits = 10 * draw(20, 1, size)
    losses = [float(twice(jnp.asarray(row))) for row in logits]
    expected = [reference.cross_entropy(reference.softmax(row[0])[None], [3]) for row in logits]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert min(losses) > math.log(floor(size))
    certain = jnp.zeros((1, size)).at[0, 3].set(100)
    assert float(twice(certain)) == pytest.approx(math.log(floor(size)), rel=1e-6)
    undecided = jnp.zeros((1, size))
    np.testing.assert_allclose(jax.grad(twice)(undecided), jax.grad(right)(undecided) / size, rtol=1e-4)
