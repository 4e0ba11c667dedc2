"""The explorer's file as Python writes it: weights, size, policy; and which checkpoints a run keeps for it."""

import base64
import dataclasses
import gzip
import hashlib
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import explorer
from experiments.train import explorer_command
from tests.test_experiments import save_run
from tinygpt_jax import explorer as explorer_package
from tinygpt_jax.config import Config, DataConfig, ModelConfig
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.explorer import building, fits, write_explorer
from tinygpt_jax.explorer.weights import letters, pack, rounded
from tinygpt_jax.runs.checkpoint_files import Checkpoint, checkpoints, write_manifest
from tinygpt_jax.tokenizer import compact
from tinygpt_jax.training.checkpoint import open_all, open_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with random weights."""
    folder = tmp_path_factory.mktemp("run")
    data = DataConfig("a/<b>.txt", "compact")
    return save_run(folder, data, compact(np.ones(50_257, int), 30), None)


@pytest.fixture(autouse=True)
def no_device_change(monkeypatch):
    """Choosing a device sets options for the whole process."""
    monkeypatch.setattr(explorer, "use_device", lambda device: None)


def test_the_command_writes_one_file_that_names_no_other(folder, tmp_path, capsys):
    """The policy lets only the page's own script and style act, whose checksums it has; the source's name is text."""
    path = tmp_path / "new folder" / "explorer.html"
    explorer.main(["--workdir", str(folder), "--to", str(path)])
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    assert capsys.readouterr().out == f"{path}: {size}, the model after 0 updates; open it in a browser\n"
    text = path.read_text(encoding="utf-8")
    [policy] = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', text)
    [whole, script], [style] = (
        re.findall(r"<script>(.*?)</script>", text, re.DOTALL),
        re.findall("<style>(.*?)</style>", text, re.DOTALL),
    )
    script, whole, style = (
        f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
        for part in (script, whole, style)
    )
    assert policy == (
        f"default-src 'none'; script-src {script} {whole}; style-src {style}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    assert re.findall(r"\b(?:https?:)?//(?!\s)\w+\.\w", text) == []
    assert "<title>Inside a model that learned from &lt;b&gt;.txt</title>" in text
    assert "/work" not in text and str(folder) not in text


def test_no_text_is_read_as_html_and_none_as_a_program():
    """What stories say reaches the page as text nodes and attributes only."""
    for path in (Path(explorer_package.__file__).parent / "page").glob("*.js"):
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "srcdoc",
        ):
            assert way not in path.read_text(encoding="utf-8"), f"{way} in {path.name}"


def test_the_same_run_gives_the_same_page(folder, tmp_path):
    run = open_run(folder)
    for name in ("one", "two"):
        write_explorer([run], {}, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(("form", "width"), [("float16", 2), ("int8", 1)])
def test_weights_are_rounded_as_said(folder, form, width):
    """To 11 bits, or in each output to 127 steps up to its largest weight; the text has what `letters` expects."""
    run = open_run(folder)
    described, text = pack(run, form)
    sizes = [len(gzip.decompress(base64.b64decode(text))), sum(x.size for x in jax.tree.leaves(run.params)) * width]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.3)  # vectors and scales besides
    assert letters(run.config.model, form) == pytest.approx(sizes[1] * 4 / 3)
    assert {one["name"]: one["shape"] for one in described}["blocks_0.attention.qkv_weight"] == (48, 16)
    near = rounded(run, form)
    weight, found = run.params["blocks_0"]["attention"]["qkv_weight"], near["blocks_0"]["attention"]["qkv_weight"]
    step = 2.0**-11 * np.abs(weight) if form == "float16" else np.abs(weight).max(axis=0, keepdims=True) / 254
    assert np.all(np.abs(found - weight) <= step * 1.001 + 1e-7) and np.any(found != weight)


def test_what_float16_cannot_hold_is_refused(folder):
    run = open_run(folder)
    params = {**run.params, "token_embedding": run.params["token_embedding"].at[0, 0].set(1e5)}
    with pytest.raises(UserError, match="token_embedding has numbers that float16 cannot hold"):
        pack(dataclasses.replace(run, params=params), "float16")


def test_a_model_too_large_is_refused_before_any_work(folder, tmp_path, monkeypatch):
    run = open_run(folder)
    monkeypatch.setattr(building, "MOST_BYTES", 1_000)
    with pytest.raises(UserError, match=r"more than .* MB .*: experiments.generate and docs/library.md look"):
        write_explorer([run, run], {}, tmp_path / "page.html")  # nor would int8 or one of them fit
    monkeypatch.setattr(building, "MOST_BYTES", int(2.5 * letters(run.config.model, "int8")))
    with pytest.raises(UserError, match=r"--weights int8 makes it .* MB; a single checkpoint"):
        write_explorer([run, run], {}, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_the_reference_system_does_not_fit_and_the_small_ones_do():
    assert not fits(ModelConfig())
    assert fits(ModelConfig(vocab_size=5_257, n_layers=4, n_heads=4, d_model=256, d_ff=1024))


def test_nothing_but_a_page_is_replaced(folder, tmp_path):
    (tmp_path / "stories.txt").write_text("mine")
    os.mkfifo(tmp_path / "pipe")  # stands for a device
    for path, why in {tmp_path / "stories.txt": "is no page", tmp_path / "pipe": "no regular file"}.items():
        with pytest.raises(UsageError, match=why):
            explorer.main(["--workdir", str(folder), "--to", str(path)])
    assert (tmp_path / "stories.txt").read_text() == "mine" and (tmp_path / "pipe").is_fifo()


def test_no_run_is_said_in_one_line(tmp_path):
    for which in ("best", "all"):
        with pytest.raises(UserError, match="train first with"):
            explorer.main(["--workdir", str(tmp_path), "--to", str(tmp_path / "x.html"), "--checkpoints", which])


def test_as_many_checkpoints_as_fit_are_shown(folder, tmp_path, monkeypatch, capsys):
    """The first and the last among them, and it is said how many."""
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    for step in (1, 2, 40):
        _copy_checkpoint(run, step)
    size = letters(open_run(run).config.model, "float16")
    for room, steps in {3.5: "0, 2, 40", 1.5: "40", 9: "0, 1, 2, 40"}.items():
        monkeypatch.setattr(building, "MOST_BYTES", room * size)
        explorer.main(["--workdir", str(run), "--to", str(tmp_path / "x.html"), "--checkpoints", "all"])
        out = capsys.readouterr().out
        assert f"the model after {steps} updates" in out
        said = f"{len(steps.split())} of 4 checkpoints: a page holds no more of this model in float16\n"
        assert out.startswith(said) == (room < 4)


def _copy_checkpoint(run, step):
    """What the run's first checkpoint holds, as that after so many steps."""
    saved = Checkpoint.of(run, step)
    shutil.copytree(Checkpoint.of(run, 0).folder, saved.folder)
    progress = dataclasses.replace(Checkpoint.of(run, 0).progress(), step=step)
    (saved.folder / "progress.json").write_text(progress.to_json())
    write_manifest(saved.folder)


def test_training_names_the_command_that_shows_what_it_kept():
    config = Config()
    assert explorer_command(Path("a b"), config) == (
        "python -m experiments.explorer --workdir 'a b' --to 'a b/explorer.html'"
    )
    kept = dataclasses.replace(config, training=dataclasses.replace(config.training, checkpoints="all"))
    assert explorer_command(Path("runs"), kept).endswith("--to runs/explorer.html --checkpoints all")


def test_all_checkpoints_are_opened_in_order(tmp_path, folder):
    assert [run.step for run in open_all(folder)] == [checkpoint.step for checkpoint in checkpoints(folder)] == [0]
