"""Runs beside each other: which belong together, what differs, and where one leaves the reference curves."""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compare, presets
from experiments.measuring import planted, reference_curves
from tinygpt_jax.config import Config, OptimizerConfig
from tinygpt_jax.data.batches import Batch
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.model import GPT, abstract_params
from tinygpt_jax.report import drawing, reference
from tinygpt_jax.report.comparison import differences, figures, read_groups, verdict
from tinygpt_jax.report.comparison_plots import group_curves, mean_curve
from tinygpt_jax.report.reference import Excursion, Reference, shipped, windowed
from tinygpt_jax.runs.record import read_record
from tinygpt_jax.training import step as training_step

QUICKSTART = presets.get("quickstart").config
CORPUS = {"source": "builtin", "fingerprint": "f" * 64, "vocab_size": 1000, "evaluated_bytes_per_token": 4.0}


def a_run(folder, config=QUICKSTART, seed=0, steps=1000, corpus=CORPUS, change=lambda step, values: values):
    """A folder of a run whose loss falls as losses do, a little elsewhere for each seed."""
    chance = np.random.default_rng(seed)
    offset = chance.normal() * 0.004
    config = replace(config, training=replace(config.training, seed=seed))
    lines = []
    for step in [1, *range(20, steps + 1, 20)]:
        loss = 0.5 + 6 * math.exp(-step / 80) + 0.3 * math.exp(-step / 800) + offset + chance.normal() * 0.004
        norm = 0.3 * math.exp(chance.normal() * 0.1)
        lines.append(change(step, {"step": step, "loss": loss, "gradient_norm": norm}))
        if step % 200 == 0:
            lines.append(change(step, {"step": step, "validation_loss": loss, "validation_accuracy": 0.5}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json())
    (folder / "corpus.json").write_text(json.dumps(corpus))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def curves(tmp_path):
    """Reference curves of five seeds."""
    records = [read_record(a_run(tmp_path / f"reference/{seed}", seed=seed)) for seed in range(5)]
    return reference.make("quickstart", QUICKSTART, records, "a CPU")


@pytest.mark.parametrize("every", [10, 20, 30, 100])
def test_windows_are_means_of_their_updates(every):
    """By hand, update by update; a line is the mean of the updates since the line before."""
    losses = np.random.default_rng(0).normal(size=1050)
    ends = [1, *range(every, 1051, every)]
    curve = [(end, losses[begin:end].mean()) for begin, end in zip([0, *ends], ends, strict=False)]
    found = windowed(curve, 100)
    assert [step for step, _ in found] == list(range(100, ends[-1] + 1, 100))
    spread = np.repeat([value for _, value in curve], np.diff([0, *ends]))
    np.testing.assert_allclose([value for _, value in found], spread[: len(found) * 100].reshape(-1, 100).mean(axis=1))
    if 100 % every == 0:
        np.testing.assert_allclose(spread[:100].mean(), losses[:100].mean())


def test_the_mean_before_an_evaluation_may_begin_anywhere():
    losses = np.random.default_rng(0).normal(size=300)
    curve = [(end, losses[end - 5 : end].mean()) for end in range(5, 301, 5)]
    assert reference.mean_before(curve, 275) == pytest.approx(losses[225:275].mean())
    assert reference.mean_before(curve, 50) == pytest.approx(losses[:50].mean())
    assert reference.mean_before(curve, 25) is None and reference.mean_before(curve, 310) is None
    assert reference.mean_before([(10**15, 1.0)], 10**15) is None


def test_what_is_logged_too_seldom_has_no_windows():
    assert windowed([(1, 7.0), (150, 3.0), (300, 2.0), (400, 1.5)], 100) == [(400, 1.5)]


def test_the_band_is_the_mean_and_so_many_deviations_of_a_new_run():
    """By hand: the spread as a share of the mean, pooled over five steps, of three runs and one more."""
    values = {50: (3.0, 3.2, 3.4), 100: (1.0, 1.1, 1.2), **dict.fromkeys((150, 200, 250, 300), (0.8, 0.8, 0.8))}
    runs = [[(step, each[i]) for step, each in values.items()] for i in range(3)]
    band = Reference("p", Config(), "f", (0, 1, 2), "", {"loss": runs}).band("loss")
    first, second = (0.2 / 3.2) ** 2, (0.1 / 1.1) ** 2  # sample variances
    pooled = [(first + second) / 3, (first + second) / 4, (first + second) / 5, second / 5, 0, 0]
    for limits, share, mean in zip(band, pooled, (3.2, 1.1, 0.8, 0.8, 0.8, 0.8), strict=True):
        width = mean * max(reference.DEVIATIONS * (share * 4 / 3) ** 0.5, reference.LEAST["loss"])
        assert (limits.low, limits.high) == pytest.approx((mean - width, mean + width))
    assert band[-1].high == pytest.approx(0.8 * (1 + reference.LEAST["loss"]))


def test_ten_sound_runs_are_inside(curves, tmp_path):
    for seed in range(100, 110):
        found = verdict(read_record(a_run(tmp_path / str(seed), seed=seed)), [curves])
        assert str(found) == "inside the bands of quickstart, as far as it goes"


def add(name, amount, first=0, last=10**9):
    """A change of one curve between two steps."""

    def change(step, values):
        return values | ({name: values[name] + amount} if name in values and first <= step <= last else {})

    return change


def halve(step, values):
    return {name: value / 2 if name.endswith("loss") else value for name, value in values.items()}


CHANGES = {
    "above from a step on": (add("loss", 0.2, 301), ["training loss is above the band from step 350 on"]),
    "below": (
        halve,
        ["training loss is below the band from step 50 on", "validation loss is below the band from step 200 on"],
    ),
    "for a while": (add("loss", 0.3, 301, 600), ["training loss was above the band from step 350 to 600"]),
    "once, a little": (add("loss", 0.03, 401, 440), []),
    "one evaluation": (
        add("validation_loss", 1, 600, 600),
        [f"validation loss{more} was above the band at step 600" for more in ("", " over training loss")],
    ),
    "gradients": (add("gradient_norm", 3), ["gradient norm is above the band from step 50 on"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_outside_is_told_from_which_step(curves, tmp_path, name):
    change, expected = CHANGES[name]
    found = verdict(read_record(a_run(tmp_path / "run", seed=50, change=change)), [curves])
    told = [str(excursion) for excursion in found.excursions]
    # A training loss that is not as it was has another distance to the validation loss, too.
    assert told == expected or (told[:-1] == expected and "over training loss" in told[-1])


def test_a_run_under_way_is_compared_as_far_as_it_goes(curves, tmp_path):
    found = verdict(read_record(a_run(tmp_path / "run", seed=50, steps=500, change=add("loss", 0.2, 301))), [curves])
    assert found.excursions[0] == Excursion("loss", "above", 350, 500, lasts=True)


@pytest.mark.parametrize(
    ("config", "corpus", "says"),
    [
        (replace(QUICKSTART, optimizer=OptimizerConfig()), CORPUS, "its settings are not those of quickstart (optim"),
        (
            replace(QUICKSTART, training=replace(QUICKSTART.training, steps=50)),
            CORPUS,
            f"(training.steps: 50 here, {QUICKSTART.training.steps} there)",
        ),
        (QUICKSTART, CORPUS | {"fingerprint": "0" * 64}, "it learns from other stories than the reference runs"),
        (QUICKSTART, {"source": "builtin"}, "which stories it learns from is not known"),
    ],
)
def test_other_settings_or_stories_are_not_compared(curves, tmp_path, config, corpus, says):
    found = verdict(read_record(a_run(tmp_path / "run", config, corpus=corpus, change=add("loss", 0.2, 301))), [curves])
    assert found.excursions == () and says in str(found)


def test_what_changes_no_update_may_differ(curves, tmp_path):
    training = replace(QUICKSTART.training, log_every=20, eval_every=100, remat=True, eval_batches=1)
    moved = replace(QUICKSTART, training=training, data=replace(QUICKSTART.data, cache_dir="/elsewhere"))
    raised = a_run(tmp_path / "run", moved, seed=50, change=add("validation_loss", 9))
    found = verdict(read_record(raised), [curves])
    assert found.reference == "quickstart"
    assert not any(each.curve == "validation_loss" for each in found.excursions)  # measured on fewer stories


def test_the_first_losses_of_a_seed_of_the_reference_are_its_own(curves, tmp_path):
    """A change of half a per cent is far inside the seeds' spread, and outside of rounding."""

    def a_little_more(step, values):
        return values | ({"loss": values["loss"] * 1.005} if "loss" in values and step <= 200 else {})

    for seed, expected in ((3, ["training loss was above the band from step 50 to 150"]), (50, [])):
        found = verdict(read_record(a_run(tmp_path / str(seed), seed=seed, change=a_little_more)), [curves])
        assert [str(excursion) for excursion in found.excursions] == expected
    assert verdict(read_record(a_run(tmp_path / "same", seed=3)), [curves]).excursions == []


def test_reference_curves_come_back_as_they_were(curves):
    again = Reference.from_json(curves.to_json())
    assert replace(again, curves={}) == replace(curves, curves={})
    for name, runs in curves.curves.items():
        np.testing.assert_allclose(np.array(again.curves[name]), np.array(runs), rtol=1e-4)


def test_shipped_curves_are_of_the_presets_as_they_are():
    """A preset that was changed needs new curves: experiments.measuring.reference_curves makes them."""
    for each in shipped():
        assert presets.get(each.preset).config.differences(each.config, reference._IGNORED) == []
        assert len(each.seeds) >= 3 and each.curves["loss"][0][-1][0] == each.config.training.steps


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: [a_run(folder / str(seed), seed=seed) for seed in range(2)], "runs 2: must be at least 3"),
        (lambda folder: [a_run(folder / str(seed), seed=seed) for seed in range(3)], "0 is not finished"),
        (
            lambda folder: [a_run(folder / str(seed), seed=seed, steps=2200 if seed else 1000) for seed in range(3)],
            "at different steps",
        ),
        (
            lambda folder: [
                a_run(folder / str(seed), replace(QUICKSTART, optimizer=OptimizerConfig()), seed) for seed in range(3)
            ],
            "its settings are not those of quickstart",
        ),
    ],
)
def test_what_makes_no_reference_is_refused(tmp_path, make, says, monkeypatch):
    monkeypatch.setattr(reference_curves, "use_device", lambda: None)
    folders = [str(folder) for folder in make(tmp_path)]
    with pytest.raises(UserError, match=re.escape(says)):
        reference_curves.main(["--preset", "quickstart", "--to", str(tmp_path / "made.json"), *folders])
    assert not (tmp_path / "made.json").exists()


def test_a_reference_is_made_of_finished_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference_curves, "use_device", lambda: None)
    steps = QUICKSTART.training.steps
    folders = [str(a_run(tmp_path / str(seed), seed=seed, steps=steps)) for seed in range(3)]
    reference_curves.main(["--preset", "quickstart", "--to", str(tmp_path / "made.json"), *folders])
    made = Reference.from_json((tmp_path / "made.json").read_text())
    assert made.seeds == (0, 1, 2) and made.fingerprint == CORPUS["fingerprint"]
    assert (tmp_path / "made.json").stat().st_size < 8000
    assert all(run[-1][0] == steps for run in made.curves["loss"])


@pytest.fixture
def several(tmp_path):
    """Two seeds of one configuration, and one run of another."""
    other = replace(QUICKSTART, optimizer=replace(QUICKSTART.optimizer, learning_rate=1e-3))
    other = replace(other, data=replace(other.data, source="elsewhere"))
    return [
        a_run(tmp_path / "usual/0", seed=0),
        a_run(tmp_path / "usual/1", seed=1),
        a_run(tmp_path / "slow", other, seed=0),
    ]


def test_runs_that_differ_only_in_their_seed_are_a_group(several):
    usual, slow = read_groups([several[0], several[2], several[1], several[0]])
    assert (usual.name, slow.name) == ("usual", "slow")
    ends = [read_record(folder).curves["validation_loss"][-1][1] for folder in several[:2]]
    found = figures(usual)
    assert found["validation loss"] == pytest.approx((sum(ends) / 2, abs(ends[0] - ends[1]) / 2**0.5))
    assert found["bits per byte"][0] == pytest.approx(sum(ends) / 2 / math.log(2) / 4)
    assert figures(slow)["validation loss"][1] is None and found["tokens per second"] is None
    assert differences([usual, slow]) == {
        "data.source": ["builtin", "elsewhere"],
        "optimizer.learning_rate": ["0.003", "0.001"],
    }


def test_a_copy_is_not_another_seed(several, tmp_path, monkeypatch, capsys):
    """Given twice under two names, copied, and run again on a machine that rounds in another way."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(several[0], "copy")
    a_run(tmp_path / "again", seed=0, change=add("loss", 1e-6))
    compare.main(["usual/0", "usual/../usual/0", str(several[0]), "copy", "--json"])
    (group,) = json.loads(capsys.readouterr().out)["groups"].values()
    assert group["runs"] == 1 and group["folders"] == ["usual/0"] and group["copies"] == {"copy": "usual/0"}
    assert group["validation loss"][1] is None
    compare.main(["usual/0", "copy", "again", "usual/1", "--to", "page.html"])
    printed, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    for text in (
        "copy has the seed and the losses of usual/0: the two count as one run.",
        "usual/0, again have the same seed, 0: their spread is not one over seeds.",
    ):
        assert text in printed and text in page
    compare.main(["usual/0", "usual/1"])
    assert "same seed" not in capsys.readouterr().out


def test_what_cannot_be_compared_in_nats_is_told_in_the_terminal_too(several, tmp_path, capsys):
    a_run(tmp_path / "elsewhere", corpus=CORPUS | {"fingerprint": "0" * 64})
    compare.main([str(several[0]), str(tmp_path / "elsewhere"), "--to", str(tmp_path / "page.html")])
    for told in (capsys.readouterr().out, (tmp_path / "page.html").read_text()):
        assert "compare bits per byte, not nats." in told
    compare.main([str(several[0]), str(several[1])])
    assert "not nats" not in capsys.readouterr().out


def test_a_run_under_way_is_not_in_the_figures_of_its_group(several, tmp_path, capsys):
    """Its losses are of an earlier stretch: their spread would not be one of seeds."""
    late = a_run(tmp_path / "usual/late", seed=7, steps=400)
    only, with_it = (figures(read_groups([*several[:2], *more])[0]) for more in ([], [late]))
    assert with_it == only and only["runs"] == 2
    compare.main([*map(str, several[:2]), str(late)])
    assert f"{late} is at step 400 and others at 1,000: not in the figures." in capsys.readouterr().out


def test_a_run_that_has_logged_nothing_is_not_inside_a_band(curves, tmp_path):
    record = read_record(a_run(tmp_path / "run", steps=20))
    assert (
        str(verdict(record, [curves]))
        == "not compared with reference curves: it has logged no 50 updates yet, and no evaluation"
    )


def test_groups_have_names_that_tell_them_apart(several, tmp_path):
    beside = a_run(tmp_path / "usual/slow", replace(QUICKSTART, optimizer=OptimizerConfig()))
    assert [group.name for group in read_groups([*several[:2], beside])] == ["0, 1", "slow"]
    assert [group.name for group in read_groups([several[2]])] == [str(several[2])]


def test_absolute_and_relative_folders_go_together(several, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    groups = read_groups([Path("usual/0"), several[1], Path("slow")])
    assert [group.name for group in groups] == ["usual", "slow"]
    assert list(groups[0].records) == ["usual/0", str(several[1])]


def test_a_mean_curve_is_of_the_steps_that_all_have():
    assert mean_curve([[(1, 2.0), (2, 4.0), (3, 1.0)], [(2, 5.0), (1, 4.0)]]) == [(1, 3.0), (2, 4.5)]


def test_the_command(several, curves, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "shipped", lambda: [curves])
    page = tmp_path / "compare.html"
    compare.main([*map(str, several), "--to", str(page)])
    printed = capsys.readouterr().out
    assert f"{several[0]}, {several[1]}: inside the bands of quickstart" in printed
    assert f"{several[2]}: not compared with reference curves: its settings" in printed
    assert re.search(r"^optimizer.learning_rate +0.003 +0.001$", printed, re.MULTILINE)
    assert re.search(r"^usual +2 +1,000 ", printed, re.MULTILINE)
    text = page.read_text()
    assert text.count("data:image/svg+xml;base64,") == 4 and "://" not in re.sub('base64,[^"]+', "", text)
    assert '<tr><th scope="col"></th><th scope="col">runs</th><th scope="col">steps</th>' in text
    assert "optimizer.learning_rate" in text and "inside the bands of quickstart" in text
    before = page.read_bytes()
    compare.main([*map(str, several), "--to", str(page), "--json"])
    assert page.read_bytes() == before
    document = json.loads(capsys.readouterr().out)
    assert document["reference"][str(several[0])] == {"reference": "quickstart", "excursions": [], "why_not": None}
    assert document["groups"]["usual"]["folders"] == [str(several[0]), str(several[1])]


def test_a_strangers_run_is_shown_and_not_obeyed(tmp_path, capsys):
    evil = a_run(tmp_path / "<script>alert(1)</script>", corpus=CORPUS | {"source": "<b>"})
    compare.main([str(evil), "--to", str(tmp_path / "page.html")])
    assert "<script" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("flags", "kind", "says"),
    [
        ([], UsageError, "give the folders of runs"),
        (["nowhere"], UserError, "nowhere: no such folder"),
        (["."], UserError, "is not a run folder"),
        (["damaged"], UserError, "config.json cannot be used"),
        (
            ["run/checkpoints/00000060"],
            UserError,
            "00000060 is a checkpoint and no run folder; give the run that it is of",
        ),
        (["run", "--to", "."], UsageError, "--to . is a folder"),
        (
            ["run", "--to", "run/config.json"],
            UsageError,
            "--to run/config.json is there, is no page, and is left alone",
        ),
        (["run", "--to", "pipe"], UsageError, "--to pipe is no regular file, and is left alone"),
    ],
)
def test_what_cannot_be_compared_is_told_in_a_line(tmp_path, monkeypatch, flags, kind, says):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    checkpoint = a_run(tmp_path / "run") / "checkpoints/00000060"
    checkpoint.mkdir(parents=True)
    for name in ("config.json", "progress.json"):
        (checkpoint / name).write_text(QUICKSTART.to_json())
    (a_run(tmp_path / "damaged") / "config.json").write_text("{")
    with pytest.raises(kind, match=re.escape(says)):
        compare.main(flags)


def test_a_run_that_one_panel_does_not_show_is_named(tmp_path, monkeypatch):
    """The right panel begins after a tenth of the longest run's steps."""
    from matplotlib.figure import Figure

    pictures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: pictures.append(figure))
    groups = {"short": [[(s, 5.0 - s / 20) for s in (20, 40, 60)]], "long": [[(s, 3.0) for s in range(20, 601, 20)]]}
    group_curves(groups, {}, "training loss", "nats per token", tmp_path / "picture.svg")
    (legend,) = pictures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["short 2.00", "long 3.00"]


def test_many_groups_fit_into_a_picture(tmp_path, monkeypatch):
    pictures = []
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: pictures.append(figure))
    groups = {f"a variant with a name of its own, {n}": [[(s, 1 + n / s) for s in range(1, 50)]] for n in range(9)}
    group_curves(groups, {}, "training loss", "nats per token", tmp_path / "picture.svg")
    (figure,) = pictures
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 9
    assert legend.get_window_extent().x0 >= 0 and legend.get_window_extent().x1 <= drawing.SIZE_PIXELS[0]
    assert not any(legend.get_window_extent().overlaps(axes.bbox) for axes in figure.axes)


@pytest.fixture
def parts():
    """What a mistake is planted in: a model of one layer, its optimizer, and no update."""
    shape = {"vocab_size": 20, "context_length": 8, "n_layers": 1, "n_heads": 2, "d_model": 8, "d_ff": 8}
    config = replace(QUICKSTART, model=replace(QUICKSTART.model, **shape))
    model = GPT(config.model)
    return SimpleNamespace(config=config, model=model, optimizer=None, total_steps=9, mesh=None)


@pytest.fixture
def no_update(monkeypatch):
    monkeypatch.setattr(training_step, "make_train_step", lambda *_: None)


def test_planted_mistakes_are_what_they_are_called(parts, no_update):
    """Each against what it says, by hand, on parameters that differ from the first ones."""
    right, tokens = parts.model, jnp.arange(16).reshape(2, 8) % 20
    noise = np.random.default_rng(0)
    shapes = abstract_params(right.config)
    params = jax.tree.map(lambda x: jnp.array(0.5 * noise.normal(size=x.shape), jnp.float32), shapes)

    def logits(model, params, key=None):
        return jax.jit(model.apply)({"params": params}, tokens, key)

    changed = jax.tree.map(lambda x: x, params)
    attention = changed["blocks_0"]["attention"]
    for name in ("qkv_weight", "qkv_bias"):  # queries twice as large: the root of 4 features of a head
        query, rest = jnp.split(attention[name], (8,), axis=-1)
        attention[name] = jnp.concatenate([2 * query, rest], axis=-1)
    wrong, _ = planted.MISTAKES["scores not scaled"](parts, None)
    np.testing.assert_allclose(logits(wrong, params), logits(right, changed), rtol=2e-4, atol=1e-5)
    assert np.abs(logits(wrong, params) - logits(right, params)).max() > 0.01

    parts.model = right
    dropping, _ = planted.MISTAKES["dropout left on in evaluation"](parts, None)
    rate = GPT(replace(right.config, dropout=planted.DROPOUT_LEFT_ON))
    np.testing.assert_array_equal(logits(dropping, params), logits(rate, params, jax.random.key(0)))

    _, batch_of = planted.MISTAKES["targets not shifted"](parts, lambda batch: batch)
    batch = batch_of(Batch(np.array([[0, 1, 2]]), np.array([[1, 2, 0]]), np.ones((1, 3), bool)))
    np.testing.assert_array_equal(batch.targets, batch.inputs)


def test_a_beta2_that_the_preset_has_is_no_mistake():
    """A sound run that counts as one with a mistake, and is not told."""
    given = replace(QUICKSTART, optimizer=replace(QUICKSTART.optimizer, beta2=0.95))
    quickstart, changed = (planted.runs(planted.Arguments(), config, [0]) for config in (QUICKSTART, given))
    assert quickstart.keys() - changed.keys() == {"beta2 of 0.95, seed 0", "beta2 of 0.95, seed 100"}
    assert changed.keys() < quickstart.keys()


@pytest.mark.parametrize("value", planted.WRONG_BETA2)
def test_a_planted_beta2_is_only_in_the_optimizer(parts, no_update, value):
    planted.MISTAKES[f"beta2 of {value}"](parts, None)
    assert parts.config.optimizer.beta2 == QUICKSTART.optimizer.beta2  # which config.json tells
    params = {"weight": jnp.ones((2, 2))}
    state = parts.optimizer.init(params)
    _, state = parts.optimizer.update({"weight": jnp.full((2, 2), 0.1)}, state, params)
    second = [x for path, x in jax.tree.leaves_with_path(state) if ".nu" in jax.tree_util.keystr(path)]
    np.testing.assert_allclose(second[0], (1 - value) * 0.01, rtol=1e-5)


def test_planted_tells_which_runs_are_outside(curves, tmp_path, monkeypatch, capsys):
    """Nothing is trained: with a mistake and a seed of the reference the loss is higher, else it is not."""

    def train(config, mistake, workdir, updates):
        seed = config.training.seed
        a_run(workdir, config, seed, change=add("loss", 0.3) if mistake and seed == 0 else add("loss", 0))
        (workdir / planted.DONE).write_text(str(updates))

    monkeypatch.setattr(planted, "shipped", lambda: [curves])
    monkeypatch.setattr(planted, "use_device", lambda: None)
    monkeypatch.setattr(planted, "train", train)
    flags = ["--to", str(tmp_path / "to"), "--seeds", "2"]
    planted.main(flags)
    printed = capsys.readouterr().out
    many = len(planted.MISTAKES)
    assert printed.endswith(f"outside: 0 of 2 sound runs, {many} of {2 * many} with a mistake\n")
    assert re.search(r"^scores not scaled, seed 0 +from step 50 +training loss above", printed, re.MULTILINE)
    assert re.search(r"^sound 101 +no *$", printed, re.MULTILINE)
    monkeypatch.setattr(planted, "train", lambda *_: pytest.fail("trained again"))
    planted.main(flags)
    for wrong, said in (
        ("--data stories.txt", "quickstart learns from the built-in"),
        ("--first-seed -5", "--first-seed"),
    ):
        with pytest.raises(UsageError, match=said):
            planted.main([*flags, *wrong.split()])
    with pytest.raises(UsageError, match="--preset laptop: there are reference curves of quickstart"):
        planted.main([*flags, "--preset", "laptop"])
