"""A run's page: right figures, nothing from outside, nothing obeyed, and whatever is damaged is said and survived."""

import base64
import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments import report as command
from tinygpt_jax.config import Config, DataConfig, ModelConfig
from tinygpt_jax.errors import UserError
from tinygpt_jax.report import html, write_report
from tinygpt_jax.runs.checkpoint_files import Progress, checkpoints, write_manifest
from tinygpt_jax.runs.corpus_summary import length_histogram
from tinygpt_jax.runs.folder import mark_of
from tinygpt_jax.runs.record import read_record

FILES = ("config.json", "metrics.jsonl", "timings.jsonl", "samples.jsonl", "corpus.json")
PICTURES = ("loss", "perplexity", "learning_rate", "word_cloud", "story_lengths")
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;\ud800"


def lines(objects):
    return "".join(json.dumps(o) + "\n" for o in objects)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 100 steps whose best evaluation is not the last."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    folder.mkdir()
    config = Config(model=ModelConfig(vocab_size=900, d_model=96, n_heads=4), data=DataConfig(source="builtin"))
    training = [
        {
            "step": s,
            "epoch": s / 50,
            "tokens": s * 64,
            "loss": 6 / s + 0.5,
            "learning_rate": 1e-3,
            "gradient_norm": 2 / s,
        }
        for s in range(1, 101, 3)
    ]
    losses = {20: 0.9, 40: 0.8, 60: 0.7, 80: 0.6, 100: 0.64}
    evaluations = [
        {"step": s, "validation_loss": v, "validation_perplexity": math.exp(v), "validation_accuracy": 0.75}
        for s, v in losses.items()
    ]
    corpus = {
        "source": "builtin",
        "vocab_size": 900,
        "layout": "padded",
        "context_length": 128,
        "validation_entropy": 0.51,
        "evaluated_unigram_entropy": 5.0,
        "evaluated_entropy": 0.5,
        "evaluated_bytes_per_token": 4.0,
        "words": {"Lily": 30, "ball": 20, "the": 99},
        "length_histogram": length_histogram(np.arange(29, 229), 128),
    }
    (folder / "config.json").write_text(config.to_json())
    (folder / "metrics.jsonl").write_text(lines(sorted(training + evaluations, key=lambda line: line["step"])))
    timings = [{"step": s, "seconds": 6.0, "tokens_per_second": 1000.0 * s, "share_of_peak": 0.1} for s in range(1, 12)]
    (folder / "timings.jsonl").write_text(lines(timings))
    samples = [{"step": s, "prompt": "Once", "text": f"Once, at step {s}"} for s in range(10, 101, 10)]
    (folder / "samples.jsonl").write_text(lines(samples))
    (folder / "corpus.json").write_text(json.dumps(corpus))
    return folder


@pytest.fixture(scope="module")
def page(finished):
    """Its report.html."""
    return write_report(finished)


@pytest.fixture
def run(finished, tmp_path):
    """A copy to damage."""
    return shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("plots", "*.html"))


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = "".join(self.texts)
        self.images = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_data(self, data):
        if self.tags[-1:] != ["style"]:
            self.texts.append(data)


def test_the_headline_figures(page):
    text = re.sub(r"\s+", " ", Page(page).text.replace("\n", " "))
    for expected in (
        "Validation loss0.640nats per token, at step 100",
        "Best validation loss0.600nats per token, at step 80",
        "Above the exact entropy0.140nats per token, 28.0% of 0.500",
        f"Perplexity{math.exp(0.64):.2f}exp(validation loss)",
        f"Bits per token{0.64 / math.log(2):.3f}{0.64 / math.log(2) / 4:.3f} bits per byte",
        "Token accuracy75%",
        "Training loss0.560nats per token, at step 100",
        "Throughput6,000tokens per second (median)",
        "1.1 minutes",
        "exact entropy, evaluated rows0.5000 nats per token",
        "steps done100 epochs done2.00 planned5 epochs",
    ):
        assert expected in text, expected


def test_the_page_needs_nothing_from_outside(finished, page):
    """Guards against links to files beside it: the page is sent by mail."""
    html = page.read_text()
    page = Page(page)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert not any(name.startswith("on") or name in ("href", "srcset") for _, name, _ in page.attributes)
    assert "url(" not in html and "@import" not in html
    drawn = [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in page.images]
    assert drawn == [(finished / "plots" / f"{name}.png").read_bytes() for name in PICTURES]
    policy = next(value for tag, name, value in page.attributes if name == "content" and "-src" in value)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_same_run_gives_the_same_page(finished, page):
    first = page.read_bytes()
    assert write_report(finished).read_bytes() == first
    assert {path.name for path in finished.iterdir()} == {*FILES, "plots", "report.html"}
    assert {path.stem for path in (finished / "plots").iterdir()} == set(PICTURES)


def test_stories_run_from_the_first_to_the_last(page):
    shown = [int(step) for step in re.findall(r"Once, at step (\d+)", Page(page).text)]
    assert shown[0] == 10 and shown[-1] == 100 and shown == sorted(set(shown)) and len(shown) == 6


def test_settings_that_differ_from_the_defaults_are_marked(page):
    rows = re.findall(r"<tr( class=\"marked\")?><th scope=\"row\">(\w+)</th><td>([^<]*)", page.read_text())
    marked = {name: value.strip() for mark, name, value in rows if mark}
    assert marked == {"d_model": "96", "n_heads": "4", "source": "builtin"}
    assert {name for mark, name, _ in rows if not mark} > {"learning_rate", "n_layers", "batch_size", "layout"}


def test_text_is_shown_and_not_obeyed(page, run):
    """Guards every place that a stranger's text reaches: stories, prompts, the source, corpus.json, words, the name."""
    plain = Page(page).tags
    evil = run.rename(run.with_name("<b onclick=x>run"))
    config = json.loads((evil / "config.json").read_text())
    config["data"]["source"] = config["data"]["cache_dir"] = EVIL
    (evil / "config.json").write_text(json.dumps(config))
    (evil / "samples.jsonl").write_text(lines([{"step": 1, "prompt": EVIL, "text": "</blockquote>" + EVIL}]))
    corpus = json.loads((evil / "corpus.json").read_text())
    corpus |= {"source": EVIL, EVIL: EVIL, "words": {'"><img src=x onerror=y>': 3, "<i>": 2, EVIL: 1}}
    (evil / "corpus.json").write_text(json.dumps(corpus))
    page = Page(write_report(evil))
    assert set(page.tags) <= set(plain) and "script" not in page.tags and "b" not in set(page.tags) - set(plain)
    assert len(page.images) == len(PICTURES)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    shown = EVIL.replace("\ud800", "?")
    assert page.text.count(shown) >= 6 and "<b onclick=x>run" in page.text


DAMAGES = {
    "empty": lambda content: b"",
    "binary": lambda content: bytes(range(256)) * 9,
    "torn": lambda content: content[:-9],
    "cut in the middle": lambda content: content[: len(content) // 2],
}
PARTS = {
    "config.json": ["config"],
    "metrics.jsonl": ["loss", "validation_loss", "validation_accuracy", "learning_rate", "gradient_norm", "epoch"],
    "timings.jsonl": ["seconds", "tokens_per_second", "share_of_peak"],
    "samples.jsonl": ["samples"],
    "corpus.json": ["corpus", "words", "length_histogram"],
}


def parts(record):
    """All that was read."""
    others = vars(record).keys() - {"name", "curves", "problems"}
    return record.curves | {name: getattr(record, name) for name in others}


def damage(path, how):
    content = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    elif how in DAMAGES:
        path.write_bytes(DAMAGES[how](content))


@pytest.mark.parametrize("how", ["missing", "a folder", "a pipe", *DAMAGES])
def test_a_damaged_file_is_named_and_the_others_are_read(finished, run, how):
    whole = read_record(finished)
    assert whole.problems == [] and set(parts(whole)) == {part for parts in PARTS.values() for part in parts}
    for name in FILES:
        damage(run / name, how)
        record = read_record(run)
        assert record.problems and all(name in problem for problem in record.problems)
        for part, all_of_it in parts(whole).items():
            left = parts(record)[part]
            if part not in PARTS[name]:
                assert left == all_of_it
            elif name.endswith("l") and how in ("torn", "cut in the middle"):
                assert 0 < len(left) <= len(all_of_it) and left == all_of_it[: len(left)]
            else:
                assert not left
        shutil.rmtree(run / name) if how == "a folder" else (run / name).unlink(missing_ok=True)
        shutil.copy(finished / name, run / name)


@pytest.mark.parametrize(("how", "drawn"), [("torn", 3), ("binary", 0), ("cut in the middle", 3)])
def test_a_page_is_written_when_every_file_is_damaged(run, how, drawn):
    for name in FILES:
        damage(run / name, how)
    page = Page(write_report(run))
    assert len(page.images) == drawn and all(name in page.text for name in FILES)


def test_a_run_that_has_only_begun(run, capsys):
    """Or was imported: nine warnings about what nobody expects to be there."""
    for name in FILES[1:]:
        (run / name).unlink()
    page = Page(write_report(run))
    assert not page.images and "not trained here yet" in page.text and "no step logged yet" in page.text
    assert capsys.readouterr().err == "warning: not trained here yet: there is nothing to draw\n"


@pytest.mark.parametrize("value", [None, True, "1", [], {}, -1, 1e16, 10**400, float("nan"), float("inf"), [[1]] * 9])
def test_values_that_cannot_be_are_left_out(run, value):
    """Guards against a forged file that draws a picture of 10^400 bins, or ends in a traceback."""
    metrics = ("loss", "validation_loss", "validation_accuracy", "learning_rate", "gradient_norm", "epoch")
    (run / "metrics.jsonl").write_text(
        lines([{"step": 1, **dict.fromkeys(metrics, value)}, {"step": value, **dict.fromkeys(metrics, 0.5)}])
    )
    (run / "timings.jsonl").write_text(lines([{"step": 1, "seconds": value, "tokens_per_second": value}]))
    (run / "samples.jsonl").write_text(lines([{"step": value, "prompt": "a", "text": "b"}]))
    names = ("vocab_size", "context_length", "evaluated_entropy", "evaluated_bytes_per_token")
    histogram = {"edges": [1, value], "counts": [value]}
    corpus = dict.fromkeys(names, value) | {"words": {"a": value}, "length_histogram": histogram}
    (run / "corpus.json").write_text(json.dumps(corpus))
    record = read_record(run)
    assert not (any(record.curves.values()) or record.samples or record.words or record.length_histogram)
    assert not any(record.number(name) for name in names)
    write_report(run)


@pytest.mark.parametrize(
    "histogram", [[], {"edges": [1, 2]}, {"edges": [2, 1], "counts": [1]}, {"edges": [1, 2], "counts": [0]}]
)
def test_a_histogram_that_is_none_is_not_drawn(run, histogram):
    (run / "corpus.json").write_text(json.dumps({"context_length": 8, "length_histogram": histogram}))
    assert read_record(run).length_histogram is None


def test_a_vocabulary_of_one_token_is_no_distance_to_compare_with(run):
    """A uniform guess among one costs nothing, and nothing is a share of that."""
    (run / "corpus.json").write_text(json.dumps({"vocab_size": 1}))
    assert "uniform guess" not in Page(write_report(run)).text.split("Pictures")[0]


def test_a_huge_file_is_not_read(run):
    """Guards memory: the size is looked at first. The file has holes, and takes no disk."""
    with (run / "samples.jsonl").open("wb") as file:
        file.truncate(2**40)
    assert any("samples.jsonl has 1,099,511,627,776 bytes" in problem for problem in read_record(run).problems)


def test_a_checkpoint_that_training_removes_is_not_damaged(run):
    """A run that saves, and removes the checkpoint before, as fast as it can; so a reader often finds one gone."""
    folder, done = run / "checkpoints", threading.Event()
    progress = Progress(0, None, files={"config.json": mark_of(run / "config.json")})

    def train():
        step = 0
        while not done.is_set():
            step += 1
            writing = folder / ".writing"
            writing.mkdir(parents=True)
            for name in ("config.json", "tokenizer.json"):
                (writing / name).touch()
            (writing / "progress.json").write_text(dataclasses.replace(progress, step=step).to_json())
            write_manifest(writing)
            writing.rename(folder / f"{step:08}")
            if step > 1:
                shutil.rmtree((folder / f"{step - 1:08}").rename(folder / ".removing"))

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        found = [read_record(run).problems for _ in range(300)]
    finally:
        done.set()
        trainer.join()
    assert found == [[]] * 300
    (newest,) = checkpoints(run)
    (newest.folder / "progress.json").write_text("{}")
    (problem,) = read_record(run).problems
    assert "the newest checkpoint is damaged" in problem and "progress.json" in problem


def test_entropies_of_an_earlier_version_are_left_out(run, capsys):
    """They were of all validation stories, and the loss is of some."""
    corpus = json.loads((run / "corpus.json").read_text())
    corpus = {name: value for name, value in corpus.items() if not name.startswith("evaluated")}
    (run / "corpus.json").write_text(json.dumps(corpus | {"unigram_entropy": 5.0, "entropy": 0.5}))
    page = Page(write_report(run))
    assert "Above the" not in page.text and "corpus.json is of an earlier version" in page.text
    assert "warning: corpus.json is of an earlier version" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_what_is_no_run_folder_is_refused_in_one_line(tmp_path, what):
    folder = tmp_path / "x"
    if what != "missing":
        folder.mkdir() if what == "empty" else folder.write_text("")
    with pytest.raises(UserError, match="--workdir") as error:
        write_report(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert not folder.is_dir() or not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(run):
    (run / "plots").write_text("in the way")
    with pytest.raises(UserError, match="plots"):
        write_report(run)


def test_the_command_says_where_the_page_is(run, capsys):
    command.main(["--workdir", str(run)])
    assert f"page: {run / 'report.html'}" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", "--workdir", str(run / "plots")], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_table_scrolls_and_says_each_meaning_once():
    """By hand: three rows of two meanings; and a table without meanings has no column for them."""
    table = html.grid(
        "<c>", ["", "n", "what it means"], [["a", "1.0"], ["b", "2.0"], ["c", "3.0"]], ["x", "<y>", "<y>"]
    )
    assert table.startswith('<div class="grid" tabindex="0"><table><caption>&lt;c&gt;</caption>')
    rows = re.findall(r"<td>(\S+)</td>(.*?)</tr>", table)
    spans = [f'<td class="prose" rowspan="{span}">{text}</td>' for span, text in ((1, "x"), (2, "&lt;y&gt;"))]
    assert rows == [("1.0", spans[0]), ("2.0", spans[1]), ("3.0", "")]
    assert "prose" not in html.grid("c", ["", "n"], [["a", "1.0"]])
