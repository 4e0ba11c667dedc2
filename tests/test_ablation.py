"""Lists of variants become runs on as many tokens, and the table says what was measured of them."""

import json
import time
import tomllib
from dataclasses import replace

import pytest

from experiments.measuring import ablation, variants
from experiments.measuring.ablation_table import Result, as_table, summary
from experiments.measuring.peers import ours, turns
from experiments.measuring.tables import lines_of
from experiments.measuring.variants import Variant, read_list
from tinygpt_jax.config import Config, OptimizerConfig
from tinygpt_jax.data.corpus import prepare
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.evaluation import evaluate, token_bytes, whole_stories
from tinygpt_jax.model import GPT
from tinygpt_jax.runs.checkpoint_files import Progress
from tinygpt_jax.training import loop
from tinygpt_jax.training.checkpoint import open_run, save
from tinygpt_jax.training.metrics import NonFiniteError
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.sharding import make_mesh
from tinygpt_jax.training.step import initial_state

LIST = '''
[small]
base = """--preset quickstart --builtin-stories 300 --context-length 32 --n-layers 1 --d-model 16 --n-heads 2 --d-ff 16
    --steps 40 --eval-every 10"""
[small.variants]
"the base" = ""
"a lower rate" = "--learning-rate 1e-4"
"larger batch, too" = "+ --batch-size 64"
"only the batch" = "--batch-size 8"
"all" = "larger batch, too + --matrices muon --steps 7"
'''


@pytest.fixture
def small(tmp_path, monkeypatch):
    (tmp_path / "lists.toml").write_text(LIST)
    monkeypatch.setattr(variants, "LISTS", tmp_path / "lists.toml")
    return tmp_path / "lists.toml"


def test_variants_see_as_many_tokens_and_their_flags_add_up(small):
    found = {v.name: v for v in read_list("small")}
    base, lower, larger, batch, last = found.values()
    assert [v.on for v in found.values()] == [None, "the base", "a lower rate", "the base", "larger batch, too"]
    assert [v.updates for v in found.values()] == [40, 40, 10, 80, 7]  # 16 rows, 16, 64, 8, and its own
    assert [v.config.training.eval_every for v in found.values()] == [10, 10, 2, 20, 2]
    assert lower.config == replace(base.config, optimizer=replace(base.config.optimizer, learning_rate=1e-4))
    assert (larger.config.optimizer.learning_rate, larger.config.training.batch_size) == (1e-4, 64)
    assert (batch.config.optimizer.learning_rate, batch.config.training.batch_size) == (3e-3, 8)
    assert (last.config.optimizer.matrices, last.config.optimizer.learning_rate) == ("muon", 1e-4)
    assert larger.folder == "larger-batch-too" and last.added == "--matrices muon --steps 7"


def test_fewer_steps_and_other_stories_are_for_all(small):
    found = read_list("small", "stories.txt", 20)
    assert [v.updates for v in found] == [20, 20, 5, 40, 4]
    assert {v.config.data.source for v in found} == {"stories.txt"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "--list small: there is no such list; there are none"),
        ("[small", "lists.toml is damaged"),
        ("[small]\nbase = ''", "needs a text, base, and a table"),
        ("[small]\nbase = ''\n[small.variants]", "needs a text, base, and a table"),
        ("[small]\nbase = ''\nvariants = 'a'", "needs a text, base, and a table"),
        (LIST.replace("--batch-size 8", "--batch-size 8 --seed 7"), "only the batch: --seed is not a variant's"),
        (LIST.replace("--preset quickstart", ""), "list small, base: give it a --preset"),
        (
            LIST.replace("--preset quickstart", "--preset tinystories").replace("--steps 40", ""),
            "base: give it --steps",
        ),
        (LIST.replace('"the base" = ""', '"the base" = "--seed 1"'), "the base: the first variant is the base itself"),
        (LIST.replace("larger batch, too +", "another +"), "all: there is no variant another before it"),
        (LIST.replace("--batch-size 8", "--batch 8"), "list small, only the batch: Unrecognized "),
        (LIST.replace("only the batch", "a lower - rate"), "their names make no different folders"),
    ],
)
def test_a_list_that_cannot_work_is_told_in_a_line(small, text, says):
    small.write_text(text)
    with pytest.raises(UserError, match=says.replace("+", "[+]")):
        read_list("small")


@pytest.mark.parametrize("name", tomllib.loads(variants.LISTS.read_text()))
def test_every_list_that_is_shipped_can_be_trained(name):
    found = read_list(name)
    assert len({v.config for v in found}) == len(found)


def a_variant(name, on, steps, **optimizer):
    config = Config(optimizer=OptimizerConfig(**optimizer))
    return Variant(name, on, "", name, replace(config, training=replace(config.training, steps=steps)))


def test_the_table_by_hand():
    listed = [a_variant("a", None, 40), a_variant("b", "a", 40), a_variant("c", "b", 10), a_variant("d", "a", 40)]
    results = {
        "a": [Result(0, 40, 1.00, 3.0, 2.0), Result(1, 40, 1.02, 3.2, 2.0), Result(2, 40, 1.04, 3.4, 2.0)],
        "b": [Result(0, 40, 0.90, 2.2, 2.0), Result(1, 40, 0.94, 2.4, 2.0)],
        "c": [Result(0, 10, 0.95, 2.5, 2.0), Result(1)],
        "d": [],
    }
    ratios = {"a": (1, 1, 1), "b": (1.25, 1.2, 1.5), "c": (2, 2, 2)}
    times = {name: {"flags": name, "ratio": ratio, "milliseconds": ratio} for name, ratio in ratios.items()}
    times["c"]["flags"] = "as it was"
    report = summary(listed, results, {"device": "a CPU", "times": times})
    b = report["variants"]["b"]
    assert report["tokens"] == 40 * 32 * 128
    assert report["variants"]["a"]["spread"] == pytest.approx(0.02)  # sqrt((0.02^2 + 0 + 0.02^2) / 2)
    assert b["gain"] == pytest.approx(1.02 - 0.92)
    assert b["spread"] == pytest.approx(0.02 * 2**0.5)
    assert b["gain in spreads"] == pytest.approx(0.10 / ((0.02**2 + 2 * 0.02**2) / 2) ** 0.5)
    head, *lines = lines_of(as_table(report))
    assert "|".join(head[1:]) == (
        "added to|updates|seeds|bits/byte|gain|in spreads|nats/token, above the entropy|time/update|time of the run"
    )
    assert lines == [
        ["a", "", "40", "3", "1.0200 ± 0.0200", "", "", "3.2000, +60.00%", "1.00 (1.00-1.00)", "1.00"],
        ["b", "a", "40", "2", "0.9200 ± 0.0283", "+0.1000", "+4.1", "2.3000, +15.00%", "1.25 (1.20-1.50)", "1.25"],
        [
            "c",
            "b",
            "10",
            "1, 1 not finite",
            "0.9500",
            "-0.0300",
            "",
            "2.5000, +25.00%",
            "",
            "",
        ],  # timed as it was
        ["d", "a", "40", "0", "", "", "", "", "", ""],
    ]


@pytest.fixture
def trained(small, tmp_path, monkeypatch):
    """Runs that are trained in no time: their parameters are the first ones."""
    done = []

    def train(config, workdir):
        done.append((workdir.relative_to(tmp_path).as_posix(), config.training.seed))
        if config.optimizer.learning_rate == 1e-4 and config.training.batch_size == 64:
            (workdir / "metrics.jsonl").parent.mkdir(parents=True)
            (workdir / "metrics.jsonl").write_text("")
            (workdir / "config.json").write_text(config.to_json())
            raise NonFiniteError("the loss was nan")
        corpus = prepare(config.data)
        config = replace(config, model=replace(config.model, vocab_size=corpus.tokenizer.vocab_size))
        state = initial_state(GPT(config.model), make_optimizer(config.optimizer, 1), config.training.seed, make_mesh())
        save(workdir, state, Progress(0, corpus.fingerprint), config, corpus.tokenizer)
        (workdir / "metrics.jsonl").write_text("")
        (workdir / "config.json").write_text(config.to_json())
        return True

    monkeypatch.setattr(ablation, "use_device", lambda: None)
    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path / "cache"))
    small.write_text("\n".join(LIST.splitlines()[:-2]))
    return done


def call(capsys, folder, *flags):
    ablation.main(["--list", "small", "--to", str(folder / "to"), *flags])
    return capsys.readouterr().out


def test_what_is_finished_is_measured_once_and_never_trained_again(trained, small, tmp_path, capsys, monkeypatch):
    report = json.loads(call(capsys, tmp_path, "--seeds", "1", "--json"))
    assert trained == [(f"to/{name}/0", 0) for name in ("the-base", "a-lower-rate", "larger-batch-too")]
    run = open_run(tmp_path / "to/the-base/0")
    split = prepare(run.config.data).validation
    batches = whole_stories(split, 32, 8, run.tokenizer.end_of_text)
    expected = evaluate(run.model, run.params, batches, token_bytes(run.tokenizer))
    row = report["variants"]["the base"]
    assert row["bits per byte"] == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert row["above the entropy"] == pytest.approx(expected.loss * len(split.tokens) / split.entropy - 1, rel=1e-5)
    assert report["variants"]["a lower rate"]["gain"] == 0  # the same first parameters
    assert report["variants"]["larger batch, too"]["not finite"] == 1

    monkeypatch.setattr(ablation, "measure", lambda *_: pytest.fail("measured again"))
    del trained[:]
    assert json.loads(call(capsys, tmp_path, "--seeds", "1", "--json")) == report
    with pytest.raises(UserError, match=r"the-base/0 is a run of \d+ updates, and not of 5: give --steps as then"):
        call(capsys, tmp_path, "--seeds", "1", "--steps", "5")
    assert trained == []

    markdown = call(capsys, tmp_path, "--seeds", "1", "--part", "table", "--markdown").splitlines()
    assert markdown[1] == "|---|---|---|---|---|---|---|---|" and len(markdown) == 5
    small.write_text(small.read_text().replace("1e-4", "2e-4"))
    table = json.loads(call(capsys, tmp_path, "--seeds", "1", "--part", "table", "--json"))
    assert [len(row["runs"]) for row in table["variants"].values()] == [1, 0, 0]  # of other flags than were trained


def test_a_run_that_is_stopped_stops_the_rest(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda config, workdir: False)
    with pytest.raises(UserError, match=r"the-base/0 was stopped; the same command goes on"):
        call(capsys, tmp_path)


@pytest.mark.parametrize(
    "flags", ["--seeds 0", "--repeats 0", "--steps 0", "--list large", "--valid nowhere.txt", "--data elsewhere.txt"]
)
def test_what_cannot_be_is_refused_before_any_work(trained, tmp_path, capsys, flags):
    with pytest.raises(UsageError, match=flags.split()[1]):
        call(capsys, tmp_path, *flags.split())
    assert trained == []


def test_times_are_those_of_turns_beside_the_base(trained, tmp_path, capsys, monkeypatch):
    class Trainer:
        """One whose updates take 2 milliseconds for each of 16 rows."""

        def __init__(self, config):
            self.seconds = 0.002 * config.training.batch_size / 16

        def update(self, inputs, targets):
            assert inputs.shape[1] == 32 and inputs.max() < 50_257
            time.sleep(self.seconds)
            return 0.0

    monkeypatch.setattr(ours, "Trainer", Trainer)
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.02)
    report = json.loads(call(capsys, tmp_path, "--part", "time", "--repeats", "2", "--json"))
    ratios = [row["time per update"][0] for row in report["variants"].values()]
    assert ratios[0] == 1 and ratios[1] < 2 < ratios[2]
    assert report["timed on"].startswith("CPU")
    assert call(capsys, tmp_path, "--part", "table").splitlines()[-1].split()[-1] != ""
