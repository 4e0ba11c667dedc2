"""Folders in the form of Hugging Face's: what a stranger's may say, and what is refused. Needs no library of it."""

import dataclasses
import json
import shlex
import shutil
import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import convert_pytorch, export, import_model, presets, train
from tests.test_export import VOCABULARY, make_run
from tinygpt_jax import tokenizer
from tinygpt_jax.config import Config, ModelConfig, OriginConfig
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.exchange import open_model
from tinygpt_jax.exchange.folders import portable
from tinygpt_jax.exchange.model_card import model_card
from tinygpt_jax.exchange.stock_config import attention_window, model_config, stock_config
from tinygpt_jax.exchange.stock_tokenizer import tokenizer_json
from tinygpt_jax.runs.checkpoint_files import checkpoints
from tinygpt_jax.training.checkpoint import open_run


@pytest.fixture(autouse=True)
def no_device_change(monkeypatch):
    """Choosing a device sets options for the whole process."""
    for command in (export, import_model):
        monkeypatch.setattr(command, "use_device", lambda device: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), norm="pre", positions="learned")


def write(run, folder, *flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "use_device", lambda device: None)
        export.main(["--workdir", str(run), "--to", str(folder), "--format", "huggingface", *flags])
    return folder


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    return write(run, tmp_path_factory.mktemp("written") / "model")


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "model")


def refused(folder, tmp_path, message, *flags, error=UserError):
    with pytest.raises(error, match=message) as caught:
        import_model.main(["--model", str(folder), "--workdir", str(tmp_path / "new"), *flags])
    assert "\n" not in str(caught.value) and (error is UsageError or not isinstance(caught.value, UsageError))
    assert not (tmp_path / "new").exists()


def changed(folder, **values):
    """Settings of config.json; those of None are removed."""
    document = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


def test_out_and_in_again_changes_nothing(run, folder, tmp_path):
    import_model.main(["--model", str(folder), "--workdir", str(tmp_path / "again")])
    one, two = open_run(run), open_run(tmp_path / "again")
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert two.config == portable(one.config) and two.tokenizer.fingerprint == one.tokenizer.fingerprint
    assert not any(b"/home" in path.read_bytes() for path in folder.iterdir())
    assert "transformer.h.1.attn.c_attn.weight" in load_file(folder / "model.safetensors")


def test_a_file_a_run_and_a_native_folder_are_opened_too(run, folder, tmp_path):
    export.main(["--workdir", str(run), "--to", str(tmp_path / "native")])
    expected = open_model(run).params["blocks_1"]["attention"]["qkv_weight"]
    for source in (folder, str(folder), folder / "model.safetensors", tmp_path / "native"):
        np.testing.assert_array_equal(open_model(source).params["blocks_1"]["attention"]["qkv_weight"], expected)


def test_what_has_no_stock_class_is_refused_with_what_would_fit(tmp_path):
    run = make_run(tmp_path / "run", d_ff=20)
    with pytest.raises(
        UserError, match=r"post-LN with d_ff 20: .* needs 4 d_model, 32; .* --d-ff 32 or with --norm pre"
    ):
        write(run, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(UsageError, match=r"no class for post-LN with rotary positions: .* --norm pre fits"):
        stock_config(ModelConfig(positions="rotary"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not one of gpt2, openai-gpt, gpt_neo"),
        ({"model_type": ["gpt2"]}, "model_type"),
        ({"activation_function": "gelu"}, "activation 'gelu' is not one of relu, gelu_new"),
        ({"activation_function": {}}, "activation {} is not"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06; in this program it is always 1e-05"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"n_layer": 10**9}, "n_layers 1000000000: must be at least 1 and at most 1024"),
        ({"n_layer": "2"}, "n_layers '2': must be int"),
        ({"n_embd": "8"}, "d_model '8': must be int"),
        ({"n_head": 3}, "n_heads 3: must divide d_model 8"),
        ({"n_layer": 1024}, "'h.10.attn.c_attn.bias' is absent, and in the model"),
        ({"n_embd": 2**16}, r"is F32 \[24\], and in the model of config.json F32 or F16 or BF16 \[196608\]"),
        ({"n_positions": 2**20}, r"'wpe.weight' is F32 \[12, 8\], and in the model"),
        ({"vocab_size": 50_257}, "is not GPT-2's tokenizer, nor cut from it"),
        ({"tie_word_embeddings": False}, "'lm_head.weight' is absent"),
        ({"n_layer": 1}, "'h.1.attn.c_attn.bias' is F32 .*, and in the model of config.json absent"),
        ({"tinygpt_jax": 3}, "the configuration must be a JSON object"),
        ({"tinygpt_jax": {"data": {"sauce": 1}}}, "unknown field 'sauce'"),
    ],
)
def test_a_configuration_of_another_model_is_refused(folder, tmp_path, values, message):
    changed(folder, **values)
    refused(folder, tmp_path, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "not a JSON object"), ("{", "config.json is damaged"), ("[" * 10**5, "config.json is damaged")],
)
def test_a_damaged_configuration_is_refused(folder, tmp_path, text, message):
    (folder / "config.json").write_text(text)
    refused(folder, tmp_path, message)


def with_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer.ln_f.bias"), "'ln_f.bias' is absent, and in the model of config.json F32"),
        (lambda t: t.update(other=np.zeros(2, np.float32)), "'other' is F32 .2., and in the model of .* absent"),
        (lambda t: t.update({"transformer.ln_f.bias": np.zeros(8, np.int64)}), "'ln_f.bias' is I64"),
        (lambda t: t.update({"transformer.ln_f.bias": np.zeros(8)}), "'ln_f.bias' is F64"),
        (lambda t: t.update({"transformer.ln_f.bias": np.zeros(9, np.float32)}), r"'ln_f.bias' is F32 \[9\]"),
        (
            lambda t: t.update({"transformer.ln_f.bias": np.full(8, np.nan, np.float32)}),
            "ln_f.bias has numbers that are",
        ),
        (lambda t: t.update({"ln_f.bias": np.zeros(8, np.float32)}), "holds 'ln_f.bias', and so does"),
        (
            lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] * 2}),
            "lm_head.weight is not wte.weight, and",
        ),
    ],
)
def test_tensors_of_another_model_are_refused(folder, tmp_path, change, message):
    with_tensors(folder, change)
    refused(folder, tmp_path, message)


def test_a_tied_head_may_be_in_the_file_and_masks_too(folder, run):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
        tensors["transformer.h.0.attn.bias"] = np.ones((1, 1, 12, 12), np.uint8)
        tensors["transformer.h.0.attn.masked_bias"] = np.full((), -1e4, np.float32)

    with_tensors(folder, change)
    assert open_model(folder).config.model == open_model(run).config.model


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"\x80\x04\x95" + bytes(100), "is not a"),  # a pickle
        (struct.pack("<Q", 2**63) + b"{}", "its header would have"),
        (None, "not a whole safetensors file"),  # half a file
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused(folder, tmp_path, content, message):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    refused(folder, tmp_path, message)


def test_a_pickle_is_not_read(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, tmp_path, r"pytorch_model.bin alone, .*: python -m experiments.convert_pytorch --model")
    (tmp_path / "text.txt").touch()
    for path in (folder / "pytorch_model.bin", tmp_path / "text.txt"):  # in a folder of a model or not
        refused(
            path, tmp_path, f"{path.name} is no .safetensors file, and nothing else is read; give one, or the folder"
        )


def in_pieces(folder, **index):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[:9], names[9:]), 1):
        save_file({name: tensors[name] for name in part}, folder / f"model-{number}.safetensors")
    weight_map = {name: f"model-{1 + (name in names[9:])}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map, **index}))


def test_pieces_are_one_model(folder, run):
    in_pieces(folder)
    np.testing.assert_array_equal(
        open_model(folder).params["token_embedding"], open_model(run).params["token_embedding"]
    )


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"weight_map": {"a": "../model-1.safetensors"}},
            "index.json is damaged: it names no safetensors files of its f",
        ),
        ({"weight_map": {"a": "/etc/passwd"}}, "index.json is damaged"),
        ({"weight_map": {"a": 3}}, "index.json is damaged"),
        ({"weight_map": [1]}, "index.json is damaged"),
        ({"weight_map": {}}, "index.json is damaged"),
        ({"weight_map": {"a": "model-3.safetensors"}}, "model-3.safetensors is not a file"),
        ({"weight_map": {"a": "model-1.safetensors"}}, "is absent, and in the model of config.json"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(folder, tmp_path, index, message):
    in_pieces(folder, **index)
    refused(folder, tmp_path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"]["vocab"].update({"a": 7}), "its tokens are others, or not 260"),
        (lambda d: d["model"]["vocab"].pop("a"), "kept does not ascend from the bytes"),
        (lambda d: d["model"]["vocab"].update({"a": "7"}), "its tokens are others"),
        (lambda d: d["model"]["vocab"].update(new=260), "its tokens are others"),
        (lambda d: d["normalizer"]["normalizers"].reverse(), "its merges are others"),
        (lambda d: d.update(normalizer=None), "needs: "),
        (lambda d: d["model"].update(vocab=[["a", 1.0]]), "needs: "),
        (lambda d: d.update(added_tokens=[{"id": 300, "content": "<pad>"}]), "its tokens are others"),
        (lambda d: d.pop("model"), "it has no 'model'"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path, change, message):
    document = json.loads((folder / "tokenizer.json").read_text())
    change(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    refused(folder, tmp_path, rf"tokenizer.json is not GPT-2's tokenizer, nor cut from it.*{message}")


def test_without_a_tokenizer_there_is_gpt2s_or_none(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    refused(folder, tmp_path, "has no tokenizer.json, and 260 tokens are not GPT-2's 50,257")


@pytest.mark.parametrize("kept", ["gpt2", "compact", "all but one"])
def test_a_vocabulary_is_recognised(tmp_path, kept):
    from tinygpt_jax.exchange.stock_tokenizer import read_tokenizer

    ours = {
        "gpt2": tokenizer.gpt2(),
        "compact": VOCABULARY,
        "all but one": tokenizer.compact(np.arange(50_257) != 30_000),
    }[kept]
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(ours))
    assert read_tokenizer(tmp_path, ours.vocab_size).fingerprint == ours.fingerprint


def test_the_context_is_only_shortened(folder, run, tmp_path):
    assert open_model(folder, context_length=5).params["position_embedding"].shape == (5, 8)
    for length in ("13", "0"):
        message = f"--context-length {length}: must be between 1 and 12, as it has 12 positions"
        refused(folder, tmp_path, message, "--context-length", length, error=UsageError)
    with pytest.raises(UsageError, match="keeps the context it was trained with"):
        open_model(run, context_length=5)


def test_a_gpt_neox_is_ours_only_with_our_arithmetic():
    """Its defaults are not; the names of before version 5 of the library and of after mean the same."""
    ours = {"model_type": "gpt_neox", "use_parallel_residual": False, "hidden_act": "relu"}
    rope = {"rope_type": "default", "partial_rotary_factor": 1.0, "rope_theta": 10_000.0}
    assert model_config(ours | {"rotary_pct": 1.0}) == model_config(ours | {"rope_parameters": rope})
    for values, message in (
        ({}, r"rotary_pct is 0.25; in this program it is always 1.0"),
        ({"rope_parameters": rope | {"rope_theta": 5e5}}, r"rotary_emb_base is 500000.0"),
        ({"rope_parameters": rope | {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rotary_pct": 1.0, "rope_scaling": {"type": "linear"}}, "rope_scaling is"),
        ({"rotary_pct": 1.0, "use_parallel_residual": True}, "use_parallel_residual is True"),
        ({"rotary_pct": 1.0, "attention_bias": False}, "attention_bias is False"),
    ):
        with pytest.raises(UsageError, match=message):
            model_config(ours | values)


def test_a_gpt_neos_window_is_that_of_its_local_layers():
    neo = {"model_type": "gpt_neo"}
    assert attention_window(neo) == 256  # alternating, where nothing is said
    assert attention_window(neo | {"attention_types": [[["global"], 24]]}) is None
    assert attention_window(neo | {"attention_types": [[["global", "local"], 2]], "window_size": 99}) == 99
    for wrong in ([[["sparse"], 2]], [["local"]], 7, [[[{}], 1]]):
        with pytest.raises(UsageError, match=r"attention_types .* are not lists of global and local"):
            attention_window(neo | {"attention_types": wrong})
    for wrong in (0, "256", None):
        with pytest.raises(UsageError, match="window_size"):
            attention_window(neo | {"window_size": wrong})
    assert attention_window({"model_type": "gpt2"}) is None


def test_a_configuration_that_says_little_means_what_it_means_to_transformers():
    assert model_config({"model_type": "gpt2"}) == ModelConfig(
        50_257, 1024, 12, 12, 768, 3072, 0.1, "gelu", "pre", "learned", True
    )


def test_a_name_that_is_nothing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    refused(
        "nobody/nothing", tmp_path, "nobody/nothing: no such file or folder, and the hub gives no model of that name"
    )
    refused(
        "no/such/folder", tmp_path, "no/such/folder: no such file or folder; give the folder of a model, or its name"
    )
    refused(tmp_path, tmp_path, "config.json is not a file; give the folder of an exported or published model$")
    with pytest.raises(UserError, match=r"config.json is not a file; give the folder of a run, or of an exported or"):
        open_model(tmp_path)


def test_nothing_is_written_where_a_run_is(folder, run):
    before = checkpoints(run)
    with pytest.raises(UserError, match="holds a run; choose another --workdir"):
        import_model.main(["--model", str(folder), "--workdir", str(run)])
    with pytest.raises(UserError, match=r"is a run already: .* --init-from"):
        import_model.main(["--model", str(run), "--workdir", str(folder / "new")])
    assert checkpoints(run) == before


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_card_says_how_to_train_it_again(preset, monkeypatch):
    monkeypatch.setattr(train, "use_device", lambda *_: None)
    config = presets.PRESETS[preset].config
    changes = {
        "model": {"tie_embeddings": False, "dropout": 0.25},
        "data": {"source": "my stories.txt", "drop_duplicates": True},
        "optimizer": {"beta2": 0.9},
        "training": {"steps": None, "epochs": 1.5, "seed": 7},
    }
    other = Config(**{group: dataclasses.replace(getattr(config, group), **new) for group, new in changes.items()})
    for wanted in (config, other):
        command = shlex.split(export.training_command(wanted))
        assert command[:3] == ["python", "-m", "experiments.train"]
        assert train.parse(command[3:])[0].config == wanted
    assert export.training_command(config) == f"python -m experiments.train --preset {preset}"


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_card_of_a_fine_tuned_model_names_what_it_began_with(preset, folder, tmp_path, monkeypatch):
    """Network and vocabulary are the other model's and need no flags; dropout is nobody's until it is said."""
    monkeypatch.setattr(train, "use_device", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    began, config = open_model("model"), presets.PRESETS[preset].config
    wanted = Config(
        model=dataclasses.replace(began.config.model, dropout=0.05),
        data=dataclasses.replace(config.data, source="stories.txt", vocabulary="compact", max_vocab=None),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=0.25),
        training=config.training,
        origin=OriginConfig("/home/somebody/model", "c0ffee"),
    )
    other_number = dataclasses.replace(wanted.data, builtin_stories=777)  # which says nothing of a file
    command = export.training_command(portable(dataclasses.replace(wanted, data=other_number)))
    found = train.parse(shlex.split(command)[3:])[0].config
    assert found == dataclasses.replace(wanted, origin=OriginConfig("model"))
    assert command == (
        f"python -m experiments.train --preset {preset} --init-from model --dropout 0.05 --data stories.txt "
        "--learning-rate 0.25"
    )
    card = model_card(dataclasses.replace(began, config=wanted, step=7), command, 1.0)
    assert "Fine-tuned from `model` (the sha256 of its parameters is `c0ffee`) on stories.txt with" in card
    assert "| vocabulary | 260 tokens of GPT-2's, those of the model it began with |" in card
    assert "somebody" not in card
    unchanged = model_card(dataclasses.replace(began, config=wanted, step=0), command, 1.0)
    assert "The parameters of `model` " in unchanged and "Fine-tuned" not in unchanged


def test_the_card_has_the_runs_figures(folder):
    card = (folder / "README.md").read_text()
    vocabulary = "| vocabulary | 260 tokens of GPT-2's, those that occur in the stories |"
    for figure in ("| updates | 7 of 32 rows |", "Trained on stories.txt with", "pre-LN, ReLU", vocabulary):
        assert figure in card
    assert "held-out" not in card and "init-from" not in card  # it was not measured, and began anew


def test_a_folder_without_a_pickle_is_no_folder_to_convert(folder, tmp_path):
    with pytest.raises(UserError, match=r"^nothing to convert: .*/model has safetensors already; .*import_model"):
        convert_pytorch.main(["--model", str(folder), "--to", str(tmp_path / "new")])
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no config.json with a pytorch_model.bin"):
        convert_pytorch.main(["--model", str(folder), "--to", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
