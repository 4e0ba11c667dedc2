"""Fine-tuning: a run that goes on from another's parameters, with its vocabulary."""

import json
import os
import shutil
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import evaluate, plan
from experiments.measuring.breaking.outcome import compare, outcome
from experiments.measuring.breaking.several import Shape, finish
from experiments.measuring.several import losses
from experiments.train import main, parse
from tests.test_loop import TINY, lines
from tinygpt_jax import evaluation
from tinygpt_jax.data.batches import EvaluationBatches, Rows
from tinygpt_jax.data.corpus import prepare
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.exchange import open_model
from tinygpt_jax.exchange.native import export_native
from tinygpt_jax.runs.checkpoint_files import Checkpoint, saved_config
from tinygpt_jax.training.checkpoint import open_run, restore_state
from tinygpt_jax.training.loop import train, write_samples
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.origin import checksum, find_origin
from tinygpt_jax.training.sharding import make_mesh

STORIES = [f"Once upon a time, a robot named Zog{'g' * n} had {n} batteries. The end." for n in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where old/ is a short run on built-in stories, exported/ the same exported, and mine.txt other stories."""
    folder = tmp_path_factory.mktemp("origin")
    main(["--workdir", str(folder / "old"), *TINY])
    export_native(open_run(folder / "old"), folder / "exported")
    (folder / "mine.txt").write_text("\n<|endoftext|>\n".join(STORIES))
    return folder


def flags(folder, workdir, origin="old", *more):
    data = ["--data", str(folder / "mine.txt"), "--cache-dir", str(folder / "cache"), "--learning-rate", "0.01"]
    steps = ["--steps", "6", "--eval-every", "3", "--schedule", "constant", "--warmup-steps", "0"]
    return ["--workdir", str(workdir), "--init-from", str(folder / origin), *data, *steps, *more]


@pytest.fixture(scope="module")
def tuned(folder):
    main(flags(folder, folder / "tuned"))
    return folder / "tuned"


def test_it_begins_with_the_parameters_of_the_other_run_and_a_fresh_optimizer(folder):
    old = open_run(folder / "old")
    main(flags(folder, folder / "short", "old", "--steps", "1"))  # a longer one removes its first checkpoint
    saved = Checkpoint.of(folder / "short", 0)
    state = restore_state(saved, make_optimizer(saved.config().optimizer, 1), make_mesh())
    assert checksum(state.params) == checksum(old.params) == saved.config().origin.sha256
    assert all(not np.any(x) for x in jax.tree.leaves(state.opt_state)) and int(state.step) == 0
    assert saved.tokenizer().fingerprint == old.tokenizer.fingerprint
    assert saved.config().model == old.config.model


def test_it_learns_the_new_stories_and_tells_how_it_began(folder, tuned, capsys, monkeypatch):
    """The first line is what the old model makes of the held-out stories."""
    measured = [line["validation_loss"] for line in lines(tuned, "metrics") if "validation_loss" in line]
    assert [line["step"] for line in lines(tuned, "metrics") if "validation_loss" in line] == [0, 3, 6]
    assert measured[-1] < measured[0] - 1
    before, after = open_run(folder / "old"), open_run(tuned)
    corpus = prepare(after.config.data, tokenizer=before.tokenizer)
    story = corpus.validation.tokens[: corpus.validation.offsets[1]]
    assert before.tokenizer.decode(story) in STORIES
    rows = Rows(corpus.validation, "padded", before.config.model.context_length, before.tokenizer.end_of_text)
    untrained = evaluation.evaluate(before.model, before.params, EvaluationBatches(rows, 8))
    assert measured[0] == pytest.approx(untrained.loss, rel=1e-5)
    monkeypatch.setattr(evaluate, "use_device", lambda device: None)
    evaluate.main(["--workdir", str(tuned), "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["stories"] == corpus.validation.n_stories
    assert figures["padded_rows"]["loss"] == pytest.approx(measured[-1], rel=1e-5)
    assert json.loads((tuned / "config.json").read_text())["origin"]["init_from"] == str(folder / "old")
    assert checksum(before.params) in (tuned / "report.html").read_text()


def test_an_exported_model_is_the_same_start(folder, tuned):
    main(flags(folder, folder / "from_exported", "exported"))
    found, expected = outcome(folder / "from_exported"), outcome(tuned)
    compare("the exported model", found, expected)


def test_what_is_exported_tells_no_path_of_this_machine(folder, tuned):
    export_native(open_run(tuned), folder / "tuned_exported")
    assert str(folder) not in (folder / "tuned_exported" / "config.json").read_text()
    assert open_model(folder / "tuned_exported").config.origin.init_from == "old"


def test_stopped_and_resumed_without_the_other_run_it_ends_the_same(folder, tuned):
    """Stopped after its first update, where all that it has of the other run is its own checkpoint."""
    shutil.copytree(folder / "old", folder / "passing")
    command = flags(folder, folder / "resumed", "passing")

    def stop(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return write_samples(*arguments)

    assert not train(parse(command)[0].config, folder / "resumed", sampler=stop)
    assert lines(folder / "resumed", "metrics")[-1]["step"] < 3
    shutil.rmtree(folder / "passing")
    main([*TINY, *command])
    compare("the resumed run", outcome(folder / "resumed"), outcome(tuned))
    origin, expected = (saved_config(workdir).origin for workdir in (folder / "resumed", tuned))
    assert origin == replace(expected, init_from=str(folder / "passing"))


def test_two_processes_begin_with_the_same(folder, tuned):
    """Each reads the other run for itself, and puts its part of the parameters where it belongs."""
    workdir = folder / "several"
    finish(workdir, Shape(2, 1, "fsdp=2"), *flags(folder, workdir))
    assert losses(workdir) == pytest.approx(losses(tuned), rel=1e-4)


def config_of(*command):
    return parse(command)[0].config


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--n-layers", "2"], "its model is another .model.n_layers: 2 here, 1 there.: leave these flags out"),
        (["--vocabulary", "gpt2"], "the model of .* keeps its own, compact; leave the flag out"),
        (["--init-from", "nowhere"], "nowhere"),
        (["--init-from", ""], "--init-from is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(folder, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        main(flags(folder, tmp_path / "run", "old", *more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("other", ["exported", "mine.txt", None])
def test_a_run_goes_on_from_its_own_beginning_only(folder, tuned, other):
    command = flags(folder, tuned, other or "old")
    if other is None:
        del command[2:4]
        command += ["--preset", "quickstart"]
    with pytest.raises(UsageError, match=r"holds a run with another configuration .*origin\.init_from: "):
        main(command)


def test_dropout_and_the_settings_of_training_are_free(folder, tmp_path):
    """The network is the other's whatever the preset says; how it is trained is the preset's."""
    config = config_of(*flags(folder, tmp_path, "old", "--preset", "tinystories", "--dropout", "0.3"))
    old = open_run(folder / "old").config
    assert replace(config.model, dropout=old.model.dropout) == old.model and config.model.dropout == 0.3
    assert (config.data.vocabulary, config.training.batch_size) == ("compact", 32)
    assert find_origin(config, tmp_path).config.sha256 == checksum(open_run(folder / "old").params)


def test_a_plan_is_of_the_model_that_the_flags_describe(capsys):
    with pytest.raises(UsageError, match="init_from old: changes nothing of an update"):
        plan.parse(["--preset", "quickstart", "--gpu", "h100", "--init-from", "old"])
