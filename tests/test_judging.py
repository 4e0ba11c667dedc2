"""`evaluate --stories` from end to end, on a small model at three stages of its training."""

import dataclasses
import json
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import evaluate
from tinygpt_jax.arithmetic import resolve_arithmetic
from tinygpt_jax.config import Config, DataConfig, ModelConfig
from tinygpt_jax.data.batches import Rows, TrainingBatches
from tinygpt_jax.data.corpus import Corpus, prepare
from tinygpt_jax.devices import resolve_dtype
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.evaluation import evaluate as measure
from tinygpt_jax.evaluation import whole_stories
from tinygpt_jax.judging import judge
from tinygpt_jax.judging.figures import Judgement, Row, Section, read_judgement, table, write_judgement
from tinygpt_jax.model import GPT
from tinygpt_jax.report import write_report
from tinygpt_jax.runs.checkpoint_files import Progress
from tinygpt_jax.training.checkpoint import save
from tinygpt_jax.training.step import TrainState

STAGES = (5, 25, 100)  # updates


class Trained(NamedTuple):
    """A small model of the built-in stories at several stages."""

    config: Config
    corpus: Corpus
    model: GPT
    params: dict[int, Any]  # by the number of updates


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    data = DataConfig(source="builtin", vocabulary="compact", builtin_stories=1000, cache_dir=cache)
    corpus = prepare(data, workers=1)
    shape = {"context_length": 120, "n_layers": 1, "n_heads": 2, "d_model": 32, "d_ff": 64, "norm": "pre"}
    shape |= {"vocab_size": corpus.tokenizer.vocab_size, "dropout": 0.0, "tie_embeddings": False}
    config = Config(ModelConfig(**shape), data)
    # As `open_run` makes it, so that what is compiled once serves all tests.
    model = GPT(config.model, resolve_dtype("auto"), arithmetic=resolve_arithmetic())
    batches = TrainingBatches(Rows(corpus.train, "padded", 120, corpus.tokenizer.end_of_text), 8, seed=0)
    adam = optax.adam(2e-2)

    @jax.jit
    def update(params, state, batch):
        gradients = jax.grad(lambda p: model.apply({"params": p}, *batch, method="loss"))(params)
        updates, state = adam.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.jit(model.init)(jax.random.key(0), batches[0].inputs[:1, :1])["params"]
    state, stages = adam.init(params), {}
    for step in range(STAGES[-1]):
        params, state = update(params, state, batches[step])
        if step + 1 in STAGES:
            stages[step + 1] = jax.device_put(params, jax.devices()[0])  # and so committed, as what is restored is
    return Trained(config, corpus, model, stages)


@pytest.fixture(scope="module")
def judged(trained):
    """A judgement of few stories for each stage, and of the last one with its output tokens shuffled."""
    corpus, last = trained.corpus, trained.params[STAGES[-1]]
    order = np.random.default_rng(0).permutation(corpus.tokenizer.vocab_size)
    params = trained.params | {"shuffled": {**last, "head_weight": last["head_weight"][order]}}
    judge_few = partial(judge.judge_stories, n_stories=16, max_new_tokens=100)
    return {name: judge_few(trained.model, p, corpus.tokenizer, corpus, STAGES[-1]) for name, p in params.items()}


def figure(judgement, section, row, column):
    """A figure of a judgement."""
    (section,) = (s for s in judgement.sections if s.name == section)
    return {r.name: r.cells for r in section.rows}[row][column]


def test_stages_come_out_in_the_order_of_their_losses(trained, judged):
    """In the divergence, which is the loss above the entropy, and in how far their stories keep to the grammar."""
    split, end = trained.corpus.validation, trained.corpus.tokenizer.end_of_text
    entropy = split.entropy / len(split.tokens)
    losses = [measure(trained.model, trained.params[step], whole_stories(split, 120, 16, end)).loss for step in STAGES]
    kl = [figure(judged[step], "divergence", "all tokens", "KL") for step in STAGES]
    words = [figure(judged[step], "grammar", "words before leaving", "figure") for step in STAGES]
    assert losses == sorted(losses, reverse=True) and losses[0] > 2 * losses[-1]
    assert kl == pytest.approx([loss - entropy for loss in losses], rel=0.05)  # of the same stories, nearly
    assert kl == sorted(kl, reverse=True) and words == sorted(words) and words[-1] > words[0]


def test_a_model_whose_tokens_are_shuffled_is_at_chance(trained, judged):
    """Its stories leave the grammar at once, it is no nearer to the truth than a guess, and of pairs it knows half."""
    shuffled = judged["shuffled"]
    points, count = (figure(shuffled, "pairs", "all pairs", column) for column in ("model", "pairs"))
    assert abs(points - 0.5) < 4 * 0.5 / np.sqrt(int(count)) and int(count) > 300
    guess = np.log(trained.corpus.tokenizer.vocab_size)
    assert figure(shuffled, "divergence", "all tokens", "KL") > guess - 1
    assert figure(shuffled, "grammar", "words before leaving", "figure") < 1
    assert figure(shuffled, "memorisation", "5-grams", "written") == 0
    assert figure(shuffled, "memorisation", "5-grams", "held-out") > 0.5


def test_stories_that_nobody_knows_the_grammar_of(trained, judged):
    """The other figures are the same without it."""
    corpus = trained.corpus
    unknown = dataclasses.replace(corpus, validation=dataclasses.replace(corpus.validation, entropy=None))
    params = trained.params[STAGES[-1]]
    few = judge.judge_stories(
        trained.model, params, corpus.tokenizer, unknown, STAGES[-1], n_stories=16, max_new_tokens=100
    )
    assert [section.name for section in few.sections] == ["pairs", "memorisation", "form"]
    assert few.sections == judged[STAGES[-1]].sections[3:]


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """The last stage as a run's folder; and the command writes few stories."""
    state = TrainState(jnp.int32(STAGES[-1]), trained.params[STAGES[-1]], {"unused": jnp.zeros(1)})
    progress = Progress(STAGES[-1], trained.corpus.fingerprint)
    save(tmp_path / "run", state, progress, trained.config, trained.corpus.tokenizer)
    (tmp_path / "run" / "config.json").write_text(trained.config.to_json())
    monkeypatch.setattr(evaluate, "use_device", lambda device: None)
    monkeypatch.setattr(judge, "judge_stories", partial(judge.judge_stories, n_stories=16, max_new_tokens=100))
    return tmp_path / "run"


def test_the_command_prints_and_keeps_the_figures_and_the_page_shows_them(run, judged, capsys):
    evaluate.main(["--workdir", str(run), "--stories", "--json"])
    printed = capsys.readouterr().out
    kept = read_judgement(run)
    assert printed == (run / "stories.json").read_text() and json.loads(printed)["step"] == STAGES[-1]
    assert kept == judged[STAGES[-1]]  # the same seeds, the same figures
    evaluate.main(["--workdir", str(run), "--stories"])
    out = capsys.readouterr().out
    assert all(table(section) in out for section in kept.sections) and "kept in" in out
    page = write_report(run).read_text()
    assert f"At step {STAGES[-1]}: 16 stories written at temperature 1" in page
    for section in kept.sections:
        assert f"<caption>{section.name}: " in page
        for row in section.rows:
            assert f'<th scope="row">{row.name}</th>' in page
    assert '<td class="prose" rowspan="1">stories that come to their end before they are cut</td>' in page
    of_this_kind = [row.means for row in kept.sections[1].rows][-1]
    assert page.count(of_this_kind) == 1


def test_stories_of_other_sources_are_refused(run):
    for flags in (["--data", "builtin"], ["--split", "train"]):
        with pytest.raises(UsageError, match="--stories is for the run's own stories"):
            evaluate.main(["--workdir", str(run), "--stories", *flags])
    with pytest.raises(UserError, match="train first"):
        evaluate.main(["--workdir", str(run / "missing"), "--stories"])
    assert not (run / "stories.json").exists()


def test_the_page_obeys_nothing_and_survives_damage(run, capsys):
    evil = "<script>alert(1)</script>"
    section = Section(evil, evil, [Row(evil, {evil: evil}, "share", evil)], [evil])
    write_judgement(run, Judgement(3, evil, [section]))
    page = write_report(run).read_text()
    assert evil not in page and page.count("&lt;script&gt;") >= 6
    (run / "stories.json").write_text("{")
    page = write_report(run).read_text()
    assert "stories.json is damaged" in page and "stories.json is damaged" in capsys.readouterr().err
