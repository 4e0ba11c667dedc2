"""What Hugging Face's libraries make of our folders, and we of theirs. Needs the extra `huggingface`."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import convert_pytorch, export, import_model
from tests.test_export import MODEL, VOCABULARY, make_run
from tinygpt_jax import tokenizer
from tinygpt_jax.config import Config, DataConfig, Sampling
from tinygpt_jax.data.grammar import write_stories
from tinygpt_jax.errors import UserError
from tinygpt_jax.exchange import open_model
from tinygpt_jax.exchange.folders import portable
from tinygpt_jax.exchange.hugging_face import export_hugging_face
from tinygpt_jax.exchange.stock_tokenizer import tokenizer_json
from tinygpt_jax.exchange.tensors import assembled, parameter_shapes
from tinygpt_jax.generation import generate
from tinygpt_jax.model import GPT
from tinygpt_jax.training.checkpoint import Run, open_run

transformers = pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[huggingface]"')
torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install ".[huggingface]"')
tokenizers = pytest.importorskip("tokenizers", reason='tokenizers is not installed: pip install ".[huggingface]"')

torch.set_num_threads(1)  # these models are too small for more
STORY = "Once upon a time, there was a girl named Lily. She didn't like her mom's soup!"


@pytest.fixture(autouse=True)
def no_device_change(monkeypatch):
    """Choosing a device sets options for the whole process."""
    for command in (export, import_model):
        monkeypatch.setattr(command, "use_device", lambda device: None)


def random_run(**variant):
    """A model whose parameters are all random, biases and norms too."""
    config = Config(
        model=dataclasses.replace(MODEL, **variant), data=DataConfig("/home/somebody/stories.txt", "compact")
    )
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in parameter_shapes(config.model).items()
    }
    return Run(config, VOCABULARY, assembled(config.model, arrays), 7, GPT(config.model), None)


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def agrees(model, folder, length):
    """Open it, compare the logits of random tokens, and return the run."""
    run = open_model(folder)
    tokens = np.random.default_rng(2).integers(0, run.tokenizer.vocab_size, (2, length))
    found = run.model.apply({"params": run.params}, jax.numpy.asarray(tokens))
    np.testing.assert_allclose(found, logits_of(model, tokens), rtol=0, atol=1e-4)
    return run


def same_leaves(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("norm", "activation", "positions", "tied"),
    [
        *itertools.product(("pre", "post"), ("relu", "gelu"), ("sinusoidal", "learned"), (True, False)),
        *itertools.product(("pre",), ("relu", "gelu"), ("rotary",), (True, False)),
    ],
)
def test_stock_classes_compute_the_same(tmp_path, norm, activation, positions, tied):
    """Logits, 100 greedy tokens, and after the way back every bit. sqrt(d_model) is no number of float32 here."""
    variant = {"norm": norm, "activation": activation, "positions": positions, "tie_embeddings": tied}
    run = random_run(**variant, d_model=24, d_ff=96, context_length=112)
    export_hugging_face(run, tmp_path / "model", card="")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokens = np.random.default_rng(1).integers(0, VOCABULARY.vocab_size, (3, 112))
    model.generation_config.eos_token_id = None  # to the end, whatever it says
    tokens[:1] = model.generate(torch.tensor(tokens[:1, :12]), max_new_tokens=100, do_sample=False).numpy()
    ours = np.asarray(run.model.apply({"params": run.params}, jax.numpy.asarray(tokens)))
    np.testing.assert_allclose(logits_of(model, tokens), ours, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(ours[0, 11:-1].argmax(-1), tokens[0, 12:])

    again = open_model(tmp_path / "model")
    same_leaves(run.params, again.params)
    assert again.config == portable(run.config) and again.tokenizer.fingerprint == run.tokenizer.fingerprint


def test_from_a_run_to_a_story_by_the_library_alone(tmp_path):
    """The commands and the lines of the model card: what it writes is what we write."""
    workdir = make_run(tmp_path / "run", norm="pre", context_length=32)
    export.main(["--workdir", str(workdir), "--to", str(tmp_path / "model"), "--format", "huggingface"])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokens = model.generate(**theirs("Once", return_tensors="pt"), max_new_tokens=20)
    run, greedy = open_run(workdir), Sampling(temperature=0)
    (ours,) = generate(run.model, run.params, run.tokenizer, ["Once"], greedy, max_new_tokens=20, seed=0)
    assert theirs.decode(tokens[0], skip_special_tokens=True) == "Once" + ours.text
    assert theirs("Once")["input_ids"] == [VOCABULARY.end_of_text, *VOCABULARY.encode("Once")]
    assert theirs("Once", add_special_tokens=False)["input_ids"] == VOCABULARY.encode("Once")
    assert theirs.decode(VOCABULARY.encode(STORY)) == STORY and theirs.eos_token_id == VOCABULARY.end_of_text
    assert theirs.model_max_length == 32


def test_several_prompts_are_padded(tmp_path):
    """With end-of-text; the logits that follow are those of each prompt alone."""
    export_hugging_face(random_run(norm="pre", context_length=32), tmp_path / "model", card="")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    prompts, wanted = ["Once", "Lily saw"], {"output_logits": True, "return_dict_in_generate": True}
    both = model.generate(**theirs(prompts, padding=True, return_tensors="pt"), max_new_tokens=1, **wanted)
    for row, prompt in enumerate(prompts):
        alone = model.generate(**theirs(prompt, return_tensors="pt"), max_new_tokens=1, **wanted)
        np.testing.assert_allclose(both.logits[0][row], alone.logits[0][0], rtol=0, atol=1e-5)


def test_end_of_text_in_a_text_is_the_token_there_and_spelled_here(tmp_path):
    export_hugging_face(random_run(norm="pre"), tmp_path / "model", card="")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text, plain = "a<|endoftext|>b", {"add_special_tokens": False}
    a, b = VOCABULARY.encode("a"), VOCABULARY.encode("b")
    assert theirs(text, **plain)["input_ids"] == [*a, VOCABULARY.end_of_text, *b]
    assert theirs(text, split_special_tokens=True, **plain)["input_ids"] == VOCABULARY.encode(text)


def test_a_model_trained_further_elsewhere_is_what_it_has_become(tmp_path):
    """Its head is no longer its embedding, then its table of positions no longer sinusoids."""
    export_hugging_face(random_run(d_ff=32), tmp_path / "model", card="")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for changed, positions in ((model.lm_head, "sinusoidal"), (model.transformer.positions_embed, "learned")):
        with torch.no_grad():
            changed.weight[0, 0] += 1e-4
        model.save_pretrained(tmp_path / positions)
        theirs.save_pretrained(tmp_path / positions)
        run = agrees(model, tmp_path / positions, 12)
        assert (run.config.model.positions, run.config.model.tie_embeddings) == (positions, False)


def test_an_embedding_that_no_longer_fits_is_not_taken(tmp_path):
    """What it was before it was scaled lies beside; a model that has another by now keeps that."""
    run = random_run(norm="pre", tie_embeddings=False, d_model=24, n_heads=2)
    export_hugging_face(run, tmp_path / "model", card="")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.wte.weight"] *= 2
    save_file(tensors, path)
    again = open_model(tmp_path / "model").params["token_embedding"]
    np.testing.assert_allclose(again, 2 * run.params["token_embedding"], rtol=1e-6)


def texts(count):
    """Stories, words, and every character there is beside others."""
    yield from (text for text, _ in write_stories(30, seed=5))
    yield from ("", STORY, " ", "  two\n\n lines \t", "it's'll 've!'s 'sand\n'd", "a1b2 33 ½ I'd've")
    yield "we'rex they'velvet he'lly you'dd I'mm can'tt it'ss x're's 're"
    yield "日本語 été naïve 👩‍👩‍👧"
    yield from ("\x00\x1c\x85 \u2028 \xa0\xa0x\xa0's", "Zog's vacuuming; unicorn-ish \t 's", "—× \ufdd1'ﬃ’s ǅ")
    rng = np.random.default_rng(0)
    assigned = [chr(i) for i in range(0x30000) if not 0xD800 <= i < 0xE000 and i != 0xFDD0]
    alphabets = [[*map(chr, range(128))], [*" \n\t'\xa0.,1aésdmtlvre"], assigned, [*"'' sdl \n"]]
    for number in range(count):
        letters = alphabets[number % 4]
        yield "".join(letters[i] for i in rng.integers(0, len(letters), 30))


def test_gpt2s_whole_vocabulary_is_exact():
    theirs, ours = tokenizers.Tokenizer.from_str(tokenizer_json(tokenizer.gpt2())), tokenizer.gpt2()
    for text in texts(2000):
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text), repr(text)
        assert theirs.decode(ours.encode(text)) == text


@pytest.mark.parametrize("kept", ["stories", "most"])
def test_a_compact_vocabulary_is_exact(kept):
    """That of the built-in stories, which lacks much of these texts; and most of GPT-2's, where each rule shows."""
    stories = [text for text, _ in write_stories(300, seed=1)]
    counts = np.bincount(tokenizer.gpt2().encode_batch(stories)[0], minlength=50_257)
    ours = tokenizer.compact(counts if kept == "stories" else np.arange(50_257) % 5)
    theirs, various = tokenizers.Tokenizer.from_str(tokenizer_json(ours)), list(texts(120))
    for text, found in zip(various, theirs.encode_batch(various, add_special_tokens=False), strict=True):
        assert found.ids == ours.encode(text), repr(text)
        assert theirs.decode(found.ids) == text


def random_model(cls, config):
    torch.manual_seed(0)
    model = cls(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def gpt2():
    small = {"n_layer": 2, "n_head": 3, "n_embd": 24, "n_positions": 300}
    return random_model(transformers.GPT2LMHeadModel, transformers.GPT2Config(**small))


def gpt_neo():
    small = {"num_layers": 4, "num_heads": 3, "hidden_size": 24, "max_position_embeddings": 300}
    config = transformers.GPTNeoConfig(**small, attention_types=[[["global", "local"], 2]])
    return random_model(transformers.GPTNeoForCausalLM, config)


def gpt_neox():
    small = {"num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 24, "intermediate_size": 50}
    ours = {"use_parallel_residual": False, "rotary_pct": 1.0, "hidden_act": "relu", "vocab_size": 50_257}
    return random_model(transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig(**small, **ours))


@pytest.mark.parametrize("make", [gpt2, gpt_neo, gpt_neox])
def test_published_models_compute_the_same(tmp_path, make, capsys):
    """At 128 and 256 tokens; GPT-Neo's local attention sees 256, and its context is cut to them."""
    model = make()
    model.save_pretrained(tmp_path / "whole")
    for length in (128, 256):
        run = agrees(model, tmp_path / "whole", length)
    said = "note: the context is cut from 300 to 256 tokens" in capsys.readouterr().err
    lengths = {gpt2: (300, False), gpt_neo: (256, True), gpt_neox: (2048, False)}
    assert (run.config.model.context_length, said) == lengths[make]
    model.save_pretrained(tmp_path / "pieces", max_shard_size="2MB")
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 1
    same_leaves(open_model(tmp_path / "pieces").params, run.params)
    if make is not gpt_neox:  # whose head is not in it
        model.transformer.save_pretrained(tmp_path / "bare")  # without `transformer.` before the names
        same_leaves(open_model(tmp_path / "bare").params, run.params)
        same_leaves(open_model(tmp_path / "bare" / "model.safetensors").params, run.params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32_and_that_is_said(tmp_path, dtype, capsys):
    model = gpt2().to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    agrees(model.float(), tmp_path, 128)
    assert "became float32" in capsys.readouterr().err


def test_the_context_can_be_shortened(tmp_path):
    model = gpt2()
    model.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--context-length", "64"]
    import_model.main([*arguments, "--workdir", str(tmp_path / "run")])
    run = open_run(tmp_path / "run")
    assert run.config.model.context_length == 64 and run.params["position_embedding"].shape == (64, 24)
    tokens = np.random.default_rng(2).integers(0, 50_257, (2, 64))
    found = run.model.apply({"params": run.params}, jax.numpy.asarray(tokens))
    np.testing.assert_allclose(found, logits_of(model, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [gpt2, gpt_neo])
def test_a_pickle_is_converted_and_read_with_its_masks(tmp_path, make):
    """As published models were saved: with causal masks among the tensors."""
    model = make()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    state, between = model.state_dict(), "attention." if make is gpt_neo else ""
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.{between}bias"] = torch.ones(1, 1, 300, 300, dtype=torch.bool)
        state[f"transformer.h.{layer}.attn.{between}masked_bias"] = torch.tensor(-1e9)
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin alone.*experiments.convert_pytorch --model"):
        open_model(tmp_path / "model")
    convert_pytorch.main(["--model", str(tmp_path / "model"), "--to", str(tmp_path / "converted")])
    agrees(model, tmp_path / "converted", 128)


class Program:
    def __reduce__(self):
        return (print, ("a program ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [(Program(), "not a file of tensors alone"), ([1, 2], "not the tensors"), (b"PK\x03\x04", "not a file of tensors")],
)
def test_a_pickle_that_is_no_model_is_refused(tmp_path, content, message, capsys):
    (tmp_path / "config.json").write_text("{}")
    if isinstance(content, bytes):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        convert_pytorch.main(["--model", str(tmp_path), "--to", str(tmp_path / "new")])
    assert "a program ran" not in capsys.readouterr().out and not (tmp_path / "new").exists()


def test_another_architecture_is_refused(tmp_path):
    config = transformers.BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model_type 'bert' is not one of gpt2, openai-gpt, gpt_neo"):
        open_model(tmp_path)


def test_the_files_of_gpt2s_own_tokenizer_are_known(tmp_path):
    """As transformers saves them, in either form; and one with a token more is not GPT-2's."""
    gpt2().save_pretrained(tmp_path)
    theirs = json.loads(tokenizer_json(tokenizer.gpt2()))["model"]
    saved = transformers.GPT2Tokenizer(vocab=theirs["vocab"], merges=[tuple(merge) for merge in theirs["merges"]])
    saved.save_pretrained(tmp_path)
    assert open_model(tmp_path).tokenizer is tokenizer.gpt2()
    saved.add_tokens(["<pad>"])
    saved.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer.json is not GPT-2's tokenizer"):
        open_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(theirs["vocab"]))
    merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in theirs["merges"])])
    (tmp_path / "merges.txt").write_text(merges + "\n")
    assert open_model(tmp_path).tokenizer is tokenizer.gpt2()
    (tmp_path / "merges.txt").write_text(merges.replace("Ġ t", "Ġ x"))
    with pytest.raises(UserError, match=r"vocab.json is not GPT-2's tokenizer"):
        open_model(tmp_path)
