"""A model's folder for other programs: nothing changes on the way, PyTorch agrees, and nothing in it is trusted."""

import itertools
import json
import os
import shutil
import struct
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import export, generate, import_model, report
from tinygpt_jax import tokenizer
from tinygpt_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from tinygpt_jax.errors import UserError
from tinygpt_jax.model import GPT
from tinygpt_jax.runs.checkpoint_files import Progress, checkpoints
from tinygpt_jax.training.checkpoint import open_run, save
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.sharding import make_mesh
from tinygpt_jax.training.step import initial_state

VOCABULARY = tokenizer.compact(np.bincount([300, 400, 500], minlength=50_257))
MODEL = ModelConfig(
    vocab_size=VOCABULARY.vocab_size, context_length=12, n_layers=2, n_heads=2, d_model=8, d_ff=16, dropout=0.0
)


@pytest.fixture(autouse=True)
def no_device_change(monkeypatch):
    """Choosing a device sets options for the whole process."""
    for command in (export, generate, import_model):
        monkeypatch.setattr(command, "use_device", lambda device: None)


def make_run(workdir, **variant):
    """A run folder whose parameters are all random, biases and norms too."""
    config = Config(
        model=ModelConfig(**{**vars(MODEL), **variant}),
        data=DataConfig("/home/somebody/stories.txt", "compact", cache_dir="/home/somebody/cache"),
        optimizer=OptimizerConfig(warmup_steps=5, schedule="cosine"),
    )
    state = initial_state(GPT(config.model), make_optimizer(config.optimizer, 10), 0, make_mesh())
    leaves, tree = jax.tree.flatten(state.params)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [rng.normal(0, 0.3, x.shape).astype(np.float32) for x in leaves])
    save(workdir, state._replace(params=params), Progress(7, "corpus"), config, VOCABULARY)
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def exported(run, tmp_path):
    export.main(["--workdir", str(run), "--to", str(tmp_path / "model")])
    return tmp_path / "model"


def test_out_and_in_again_changes_nothing(run, exported, tmp_path, capsys):
    """A parameter under another's name, a rounded one, another vocabulary: the same seed writes the same story."""
    import_model.main(["--model", str(exported), "--workdir", str(tmp_path / "again")])
    one, two = open_run(run), open_run(tmp_path / "again")
    assert jax.tree.structure(one.params) == jax.tree.structure(two.params)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.tokenizer.fingerprint == two.tokenizer.fingerprint and one.config.model == two.config.model
    assert (one.step, two.step) == (7, 0)
    capsys.readouterr()
    stories = []
    for workdir in (run, tmp_path / "again"):
        generate.main(["--workdir", str(workdir), "--max-new-tokens", "20"])
        stories.append(capsys.readouterr().out)
    assert stories[0] == stories[1]
    report.main(["--workdir", str(tmp_path / "again")])
    assert (tmp_path / "again" / "report.html").exists()


def test_nothing_about_the_machine_is_exported(exported):
    """Where somebody keeps files; and a path that would decide where an importer writes."""
    files = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert set(files) == {"model.safetensors", "config.json", "tokenizer.json"}
    assert not any(b"somebody" in content for content in files.values())
    assert json.loads(files["config.json"])["data"]["source"] == "stories.txt"


@pytest.mark.parametrize(
    ("norm", "activation", "positions", "tied"),
    list(itertools.product(("pre", "post"), ("relu", "gelu"), ("sinusoidal", "learned"), (True, False))),
)
def test_pytorch_gives_the_same_logits(tmp_path, norm, activation, positions, tied):
    """The exported folder means to another program what it means here, in every variant."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from experiments import pytorch_reference

    variant = {"norm": norm, "activation": activation, "positions": positions, "tie_embeddings": tied}
    run = make_run(tmp_path / "run", **variant)
    export.main(["--workdir", str(run), "--to", str(tmp_path / "model")])
    opened = open_run(run)
    tokens = np.random.default_rng(1).integers(0, MODEL.vocab_size, (3, 12))
    expected = opened.model.apply({"params": opened.params}, jax.numpy.asarray(tokens))
    found = pytorch_reference.forward(*pytorch_reference.load(tmp_path / "model"), torch.tensor(tokens))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_pytorch_script_prints_the_next_tokens(exported, monkeypatch, capsys):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from experiments import pytorch_reference

    monkeypatch.setattr(sys, "argv", ["pytorch_reference.py", str(exported), "7", "1", "4"])
    pytorch_reference.main()
    assert len(capsys.readouterr().out.splitlines()) == 5


def refused(exported, tmp_path, message):
    with pytest.raises(UserError, match=message) as caught:
        import_model.main(["--model", str(exported), "--workdir", str(tmp_path / "again")])
    assert "\n" not in str(caught.value)
    assert not checkpoints(tmp_path / "again")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_is_no_file(exported, tmp_path, name):
    """Reading one would wait for ever."""
    copy = shutil.copytree(exported, tmp_path / "with a pipe")
    (copy / name).unlink()
    os.mkfifo(copy / name)
    refused(copy, tmp_path, f"{name} is not a file")


def test_all_files_may_be_read_by_whom_the_umask_lets(exported, tmp_path):
    """safetensors writes a file that nobody else may read."""
    (tmp_path / "any").touch()
    assert {path.stat().st_mode for path in exported.iterdir()} == {(tmp_path / "any").stat().st_mode}


def test_a_folder_that_cannot_be_made_is_named_with_what_to_do(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^/.*/file/model: /.*/file is a file and no folder; move it away, or"):
        export.main(["--workdir", str(run), "--to", str(tmp_path / "file" / "model")])


def test_an_existing_folder_is_left_alone(run, exported, tmp_path):
    with pytest.raises(UserError, match="exists"):
        export.main(["--workdir", str(run), "--to", str(exported)])
    with pytest.raises(UserError, match="holds a run"):
        import_model.main(["--model", str(exported), "--workdir", str(run)])
    assert not list(tmp_path.glob(".*"))


def test_parameters_that_are_not_the_models_are_refused(exported, tmp_path):
    """Another shape, dtype or name than the configuration's: before anything is loaded."""
    path = exported / "model.safetensors"
    whole = load_file(path)
    table = whole["token_embedding"]
    for changed, message in (
        (
            {"token_embedding": table[:-1]},
            r"'token_embedding' is F32 \[259, 8\], and in the model of .* F32 \[260, 8\]",
        ),
        ({"token_embedding": table.astype(np.float16)}, "'token_embedding' is F16"),
        ({"another": table}, "'another' is F32 .*, and in the model of config.json absent"),
    ):
        save_file(whole | changed, path)
        refused(exported, tmp_path, message)
    save_file({name: value for name, value in whole.items() if name != "token_embedding"}, path)
    refused(exported, tmp_path, "'token_embedding' is absent, and in the model of config.json F32")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_refused(exported, tmp_path, number):
    """A model of which every story is nonsense; the file is whole."""
    path = exported / "model.safetensors"
    whole = load_file(path)
    whole["blocks_1.attention.out_bias"][3] = number
    save_file(whole, path)
    refused(exported, tmp_path, "blocks_1.attention.out_bias has numbers that are not finite; take another copy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<Q", 2**63) + b"{}", "its header would have 9,223,372,036,854,775,808 bytes"),
        (struct.pack("<Q", 2) + b"{}", "is absent"),
        (b"", "not a whole safetensors file"),
        (b"PK\x03\x04" + bytes(100), "header would have"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(exported, tmp_path, content, message):
    (exported / "model.safetensors").write_bytes(content)
    refused(exported, tmp_path, message)


def test_a_truncated_file_is_refused(exported, tmp_path):
    path = exported / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    refused(exported, tmp_path, "not a whole safetensors file")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_broken_file_is_named_with_what_to_do(exported, tmp_path, name):
    (exported / name).write_text("[1, 2")
    refused(exported, tmp_path, f"{name}.*: .*; export the model again")


def test_a_vocabulary_of_another_model_is_refused(exported, tmp_path):
    (exported / "tokenizer.json").write_text(tokenizer.gpt2().to_json())
    refused(exported, tmp_path, "has 50257 tokens, the model of config.json 260")


def test_a_folder_with_nothing_in_it_is_refused(tmp_path):
    refused(tmp_path, tmp_path, "config.json is not a file; give the folder of an exported or published model")
