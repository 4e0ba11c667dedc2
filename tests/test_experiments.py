"""`experiments.evaluate` and `experiments.generate` on a run folder with random weights."""

import io
import json
import math
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from experiments import double_softmax, evaluate, generate
from tinygpt_jax import terminal
from tinygpt_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from tinygpt_jax.data.corpus import prepare
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.evaluation import Evaluation
from tinygpt_jax.model import GPT
from tinygpt_jax.runs.checkpoint_files import Progress
from tinygpt_jax.terminal import harmless
from tinygpt_jax.tokenizer import compact
from tinygpt_jax.training.checkpoint import save
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.sharding import make_mesh
from tinygpt_jax.training.step import initial_state


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    data = DataConfig(source="builtin", vocabulary="compact", builtin_stories=60, cache_dir=cache)
    return prepare(data), data


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    prepared, data = corpus
    return save_run(tmp_path_factory.mktemp("run"), data, prepared.tokenizer, prepared.fingerprint)


def save_run(workdir, data, tokenizer, fingerprint):
    shape = {"context_length": 32, "n_layers": 1, "n_heads": 2, "d_model": 16, "d_ff": 16}
    config = Config(model=ModelConfig(vocab_size=tokenizer.vocab_size, **shape), data=data)
    state = initial_state(GPT(config.model), make_optimizer(OptimizerConfig(), 1), 0, make_mesh())
    save(workdir, state, Progress(0, fingerprint), config, tokenizer)
    return workdir


@pytest.fixture(autouse=True)
def no_device_change(monkeypatch):
    """Choosing a device sets options for the whole process."""
    for command in (evaluate, generate):
        monkeypatch.setattr(command, "use_device", lambda device: None)


@pytest.fixture
def call(run, capsys):
    """Run a command on the run folder; returns what it printed."""

    def call(command, *flags):
        command.main(["--workdir", str(run), *flags])
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("name", ["validation", "train"])
def test_evaluate_covers_a_whole_split(call, corpus, name):
    """All tokens and bytes of all stories, though rows as in training cut them; random weights know nothing."""
    figures = json.loads(call(evaluate, "--json", "--split", name))
    split = getattr(corpus[0], name)
    whole, rows = figures["whole_stories"], figures["padded_rows"]
    assert figures["stories"] == split.n_stories
    assert (whole["tokens"], whole["n_bytes"]) == (len(split.tokens), split.n_bytes)
    assert (figures["unigram"]["tokens"], figures["unigram"]["n_bytes"]) == (len(split.tokens), split.n_bytes)
    assert rows["tokens"] == 32 * split.n_stories  # every story is longer than the context
    assert rows["n_bytes"] < whole["n_bytes"] / 2
    assert whole["loss"] == pytest.approx(math.log(corpus[0].tokenizer.vocab_size), abs=0.3)
    assert figures["exact_entropy"]["loss"] == pytest.approx(split.entropy / len(split.tokens))
    assert figures["exact_entropy"]["loss"] < figures["unigram"]["loss"] < whole["loss"]


def test_evaluate_prints_the_same_figures_as_a_table(call):
    figures = json.loads(call(evaluate, "--json"))
    lines = call(evaluate).splitlines()
    names = ["whole stories", "padded rows", "unigram", "exact entropy"]
    assert [line[:16].strip() for line in lines[2:]] == names * 2  # the figures of each, and what it is
    for line in lines[2 : 2 + len(names)]:
        result = figures[line[:16].strip().replace(" ", "_")]
        expected = f"{result['loss']:.4f} {result['perplexity']:,.3f} {result['bits_per_byte']:.4f}"
        assert " ".join(line[16:].split()[:3]) == expected


def test_a_large_perplexity_keeps_its_column():
    result = Evaluation(14.4259, 0.5, 10, 30)
    assert evaluate._table({"unigram": result}).splitlines()[1].split()[1:4] == ["14.4259", "1.84e+06", "6.9374"]


def test_evaluate_reads_a_whole_file_in_the_runs_vocabulary(run, tmp_path, capsys):
    """Words and characters that the run never met are spelled in bytes, and no story is held out."""
    stories = ["Zebras quantise.", "Ça va? ☕"]
    (tmp_path / "other.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    evaluate.main(["--workdir", str(run), "--json", "--data", str(tmp_path / "other.txt")])
    out, err = capsys.readouterr()
    assert err.endswith(" of GPT-2's tokens are spelled in bytes here: they are not in the run's vocabulary\n")
    figures = json.loads(out)
    assert (figures["stories"], figures["split"]) == (2, "all")
    assert figures["whole_stories"]["n_bytes"] == sum(len(story.encode()) for story in stories)
    assert "padded_rows" not in figures and "exact_entropy" not in figures


def test_evaluate_says_when_it_reads_what_was_trained_on(run, capsys):
    """Named as the source of the run itself, which is read whole then."""
    evaluate.main(["--workdir", str(run), "--json", "--data", "builtin"])
    out, err = capsys.readouterr()
    assert (json.loads(out)["split"], json.loads(out)["stories"]) == ("all", 60)
    warnings = [line for line in err.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: most of these are the stories that the run was trained on"]


def test_evaluate_refuses_what_it_cannot_do(call, corpus, tmp_path):
    with pytest.raises(UsageError, match="leave it out with --data"):
        call(evaluate, "--data", "builtin", "--split", "train")
    with pytest.raises(UserError, match="train first"):
        evaluate.main(["--workdir", str(tmp_path / "missing")])
    for number, (tokenizer, fingerprint, what) in enumerate(
        [
            (compact(np.zeros(50_257, int)), corpus[0].fingerprint, "its vocabulary is another"),
            (corpus[0].tokenizer, "of other stories", "its stories are others"),
        ]
    ):
        other = save_run(tmp_path / str(number), corpus[1], tokenizer, fingerprint)
        with pytest.raises(UserError, match=f"builtin has changed since the run: {what} now; try --data builtin"):
            evaluate.main(["--workdir", str(other)])


@pytest.mark.parametrize("flags", [[], ["--stories"], ["--split", "train"]])
def test_stories_that_have_moved_since_the_run_are_told(run, tmp_path, monkeypatch, flags):
    """No --data was given, and a link to where they are now is enough."""
    monkeypatch.chdir(tmp_path)
    Path("stories.txt").write_text("\n<|endoftext|>\n".join(f"A cat had {n} hats." for n in range(50)))
    for name, source in (("relative", "stories.txt"), ("absolute", str(tmp_path / "stories.txt"))):
        data = DataConfig(source=source, vocabulary="compact", cache_dir=str(tmp_path / "cache"))
        prepared = prepare(data)
        save_run(tmp_path / name, data, prepared.tokenizer, prepared.fingerprint)
    Path("stories.txt").rename("moved.txt")
    inside = r", or call this in the folder where it was trained"
    for name, more in (("relative", inside), ("absolute", "")):
        says = (
            rf"^this run's stories came from \S*stories.txt, and there are none now: put .* there{more}; evaluate --d"
        )
        with pytest.raises(UserError, match=says):
            evaluate.main(["--workdir", name, *flags])
    Path("stories.txt").symlink_to("moved.txt")
    if "--stories" not in flags:
        evaluate.main(["--workdir", "relative", *flags])


def test_generate_is_a_function_of_the_seed(call):
    """The text for one seed twice, another text for another; all of it in the JSON."""
    flags = ("--json", "--prompt", "Once", "--num-samples", "2", "--max-new-tokens", "20", "--top-k", "50")
    first, again, other = (call(generate, *flags, "--seed", seed) for seed in "112")
    assert first == again
    assert json.loads(first)["samples"] != json.loads(other)["samples"]
    document = json.loads(first)
    assert (document["prompt"], document["seed"], len(document["samples"])) == ("Once", 1, 2)
    assert document["settings"]["top_k"] == 50
    text = call(generate, *flags[1:], "--seed", "1")
    assert text == "\n\n---\n\n".join("Once" + sample["text"] for sample in document["samples"]) + "\n"


class Terminal(io.StringIO):
    """Keeps what is written to it in pieces."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def isatty(self):
        return True

    def write(self, text):
        self.pieces.append(text)


def test_generate_streams_to_a_terminal(call, run, monkeypatch):
    """In several pieces, and the same text as elsewhere."""
    flags = ("--prompt", "Once", "--max-new-tokens", "20")
    whole, screen = call(generate, *flags), Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    generate.main(["--workdir", str(run), *flags])
    assert "".join(screen.pieces) == harmless(whole)
    assert len(screen.pieces) > 3


def test_generate_says_how_far_many_stories_are(run, monkeypatch, capsys):
    """In tokens, where they do not appear as they are written. A line a minute; here at each fetch from the device."""
    monkeypatch.setattr(terminal, "_EVERY", 0)
    generate.main(["--workdir", str(run), "--num-samples", "70", "--max-new-tokens", "40"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 4 and lines[0] == "writing: 0"
    assert all(line.startswith("writing: ") and " of 2,800, " in line for line in lines[1:])


def test_no_text_is_a_command_to_the_terminal(call, run, monkeypatch):
    """ESC in a prompt, or from a model that has learned nothing, moves the cursor or worse."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    for samples in ("1", "2"):
        flags = ["--prompt", "a\x1b[2J\x9b\rb\n", "--num-samples", samples, "--max-new-tokens", "20"]
        generate.main(["--workdir", str(run), *flags])
    written = "".join(screen.pieces)
    assert written.count("a\ufffd[2J\ufffd\ufffdb\n") == 3
    assert not [letter for letter in written if letter not in "\n\t" and unicodedata.category(letter) == "Cc"]


def test_generate_says_when_it_cuts_the_prompt(run, capsys):
    generate.main(["--workdir", str(run), "--prompt", "a b c d " * 20, "--max-new-tokens", "1"])
    assert "the model reads 32 tokens: the first" in capsys.readouterr().err


def test_generate_survives_a_prompt_that_is_not_text(call):
    """Bytes that are not UTF-8 reach a program as lone surrogates, which no terminal can print."""
    assert call(generate, "--prompt", b"\xff\xfe!".decode("utf-8", "surrogateescape"), "--max-new-tokens", "1")


def test_commands_refuse_bad_numbers(call):
    for flags in (
        ["--temperature", "-1"],
        ["--top-p", "0"],
        ["--num-samples", "0"],
        ["--num-samples", "100000000"],
        ["--max-new-tokens", "0"],
        ["--max-new-tokens", "3000000000"],
    ):
        with pytest.raises(UsageError, match=flags[0][2:].replace("-", "_")):
            call(generate, *flags)


@pytest.mark.parametrize(
    ("output", "kind", "message"),
    [("", UsageError, "is a folder: give a file"), ("file/x.png", UserError, "choose another --output")],
)
def test_double_softmax_looks_for_a_place_before_it_trains(tmp_path, monkeypatch, output, kind, message):
    (tmp_path / "file").touch()
    monkeypatch.setattr(double_softmax, "train", lambda *_: pytest.fail("it trains"))
    with pytest.raises(kind, match=message):
        double_softmax.main(["--output", str(tmp_path / output)])


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1"])
def test_double_softmax_refuses_a_time_that_never_comes(seconds):
    """Or that has passed before it begins."""
    with pytest.raises(UsageError, match="must be above 0, and finite"):
        double_softmax.main(["--seconds", seconds])


def command_line(main, redirection=""):
    """A command whose `main` is this Python code, in a shell."""
    code = f"import os, sys; from experiments import cli; cli.run(lambda: {main})"
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {redirection}"
    return subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("redirection", "out", "error"),
    [(">&-", "", "warning\n"), ("2>&-", "story\n", ""), ("<&- >&- 2>&-", "", "")],
)
def test_a_closed_stream_is_no_reason_to_stop(redirection, out, error):
    """It is as if /dev/null stood there: the other one shows its own, and no file gets a number below 3."""
    main = "(sys.stderr.isatty(), print('warning', file=sys.stderr), print('story'), exit(os.open('/dev/null', 0)))"
    done = command_line(main, redirection)
    assert (done.stdout, done.stderr) == (out, error) and done.returncode >= 3


def test_what_cannot_be_printed_is_one_line():
    """A full disk, noticed when the program ends; a message that would command the terminal."""
    done = command_line("print('story')", "> /dev/full")
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")
    done = command_line("(_ for _ in ()).throw(cli.UserError('a\\x1b[2J'))")
    assert (done.returncode, done.stderr) == (1, "error: a\ufffd[2J\n")


@pytest.mark.parametrize("flags", [["--workdir", ""], ["--workdir="]])
def test_an_empty_folder_name_is_refused(flags):
    """Of an unset variable. Guards: a run in, or an export of, whatever folder one stands in."""
    with pytest.raises(UsageError, match="--workdir is empty: give a folder"):
        generate.main(flags)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--promt", "x"], "Unrecognized options: --promt, x; perhaps --prompt?"),
        (
            ["--checkpoint", "new"],
            "invalid choice 'new' for argument '--checkpoint'. Expected one of ('best', 'last').",
        ),
    ],
)
def test_a_wrong_flag_is_one_sentence(monkeypatch, encoding, flags, message):
    """Of the box that tyro draws in lines, or in ASCII where the terminal has no others."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(UsageError) as caught:
        generate.main(flags)
    assert str(caught.value) == f"{message} (--help lists the flags)"
