"""The face of the package, and every block of docs/library.md, run in its order beside a short run."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tinygpt_jax
from experiments import evaluate, export, generate
from tests import reference
from tests.test_experiments import save_run
from tinygpt_jax import evaluation
from tinygpt_jax.config import DataConfig
from tinygpt_jax.data.corpus import Split, prepare
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.generation import Sample

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where runs/ is a run with random weights, whose vocabulary is that of some built-in stories."""
    folder = tmp_path_factory.mktemp("library")
    data = DataConfig("builtin", "compact", builtin_stories=60, cache_dir=str(folder / "cache"))
    corpus = prepare(data)
    save_run(folder / "runs", data, corpus.tokenizer, corpus.fingerprint)
    return folder


@pytest.fixture
def run(folder):
    return tinygpt_jax.load(folder / "runs")


def test_importing_the_package_imports_no_jax():
    """Nor anything else that takes long; `load` does."""
    code = "import sys, tinygpt_jax; print(tinygpt_jax.__version__, dir(tinygpt_jax), *sys.modules); tinygpt_jax.load"
    code += "; print('jax' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=ROOT)
    first, second = printed.stdout.splitlines()
    assert "'Run'" in first and "'load'" in first
    assert {"jax", "flax", "numpy", "tinygpt_jax.library"}.isdisjoint(first.split())
    assert second == "True"


def test_there_is_nothing_else():
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = tinygpt_jax.lode


def test_the_page(folder, monkeypatch, capsys):
    """Each block of docs/library.md runs, and what it computes is what the page says of it."""
    page = ROOT / "docs" / "library.md"
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    page_of = {}
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines_before = "\n" * text[: block.start(1)].count("\n")  # so that a traceback has the page's line
        exec(compile(lines_before + block[1], page, "exec"), page_of)
    assert page_of["mine"].generate("The cat", temperature=0) == "The cat sat on the mat."
    assert page_of["inside"].residual.shape == (2, 1, len(page_of["ids"]), 16)
    *_, looked_at = page_of["look"](page_of["own"], page_of["fresh"], page_of["rows"][:1, :-1])
    assert np.count_nonzero(looked_at[0, 0, 0], axis=-1).tolist() == [min(8, query + 1) for query in range(32)]
    assert page_of["swept"][:, -1].argmin() not in (0, 3)  # a sweep that ends at an end has not found the best
    assert "Once upon a time" in capsys.readouterr().out


def test_generate_writes_what_the_command_writes(run, folder, capsys, monkeypatch):
    monkeypatch.setattr(generate, "use_device", lambda device: None)
    settings = {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.5, "max_new_tokens": 9, "seed": 3}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    generate.main(["--workdir", str(folder / "runs"), "--prompt", "Once", *flags])
    assert run.generate("Once", **settings) + "\n" == capsys.readouterr().out


def test_generate_has_the_defaults_of_the_command(run, monkeypatch):
    asked = {}

    def remember(model, params, tokenizer, prompts, sampling, **options):
        asked.update(prompts=prompts, sampling=sampling, **options)
        return [Sample("", "", [], True)]

    monkeypatch.setattr("tinygpt_jax.library.generate", remember)
    run.generate()
    default = generate.Arguments()
    expected = {name: getattr(default, name) for name in ("sampling", "max_new_tokens", "seed")}
    assert asked == {"prompts": [default.prompt], **expected}


def test_what_is_out_of_range_is_said(run):
    with pytest.raises(UsageError, match="temperature -1: must be at least 0"):
        run.generate(temperature=-1)


@pytest.mark.parametrize("sentences", [1, 40])
def test_loss_is_that_of_evaluate(run, folder, capsys, monkeypatch, sentences):
    """Token by token, in one window of the context and in many; the end of the story is not among them."""
    monkeypatch.setattr(evaluate, "use_device", lambda device: None)
    text = "Once upon a time, there was a cat named Åsa 🐈. " * sentences
    tokens, nats = run.loss(text.strip())
    ids = run.tokenizer.encode(text.strip())
    assert len(tokens) == len(nats) == len(ids) > 32 * (sentences > 1)
    assert tokens[:2] == ["Once", " upon"] and "\ufffd" in tokens
    split = Split(np.array([*ids, run.tokenizer.end_of_text], np.uint16), np.array([0, len(ids) + 1]), 0, None)
    windows = evaluation.whole_stories(split, 32, 4, run.tokenizer.end_of_text)
    batches = [batch._replace(mask=batch.mask & (batch.targets != run.tokenizer.end_of_text)) for batch in windows]
    whole = evaluation.evaluate(run.model, run.params, batches)
    assert (whole.tokens, whole.loss) == (len(ids), pytest.approx(float(nats.mean()), rel=1e-5))


def test_loss_of_each_token_is_its_own(run):
    """-ln of the probability that the logits before it give it, in float64."""
    ids = run.tokenizer.encode("Lily saw a cat.")
    inputs = jnp.array([[run.tokenizer.end_of_text, *ids[:-1]]])
    logits = np.array(run.model.apply({"params": run.params}, inputs)[0], np.float64)
    expected = [reference.cross_entropy(logits[[place]], [token]) for place, token in enumerate(ids)]
    np.testing.assert_allclose(run.loss("Lily saw a cat.").nats, expected, rtol=1e-5)


def test_no_text_has_no_losses(run):
    tokens, nats = run.loss("")
    assert tokens == [] and nats.shape == (0,)


def test_an_exported_folder_is_the_same_model(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "use_device", lambda device: None)
    export.main(["--workdir", str(folder / "runs"), "--to", str(tmp_path / "model")])
    loaded = tinygpt_jax.load(str(tmp_path / "model"))
    assert loaded.generate("Once", seed=2, max_new_tokens=12) == run.generate("Once", seed=2, max_new_tokens=12)
    assert loaded.loss("Once upon a time")[1].tolist() == run.loss("Once upon a time")[1].tolist()


def test_a_run_is_shown_in_a_line(run):
    """Not with every parameter."""
    count = sum(x.size for x in jax.tree.leaves(run.params))
    tokens = run.tokenizer.vocab_size
    assert repr(run) == f"Run({count:,} parameters, n_layers=1, vocabulary of {tokens:,} tokens, step 0)"


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match="is not a file; give the folder of a run"):
        tinygpt_jax.load(tmp_path)
