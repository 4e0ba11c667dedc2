"""Whole runs through the train command: in processes of their own where it matters, else in this one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import cli, presets
from experiments.measuring.breaking import victim
from experiments.measuring.breaking.outcome import compare, outcome
from experiments.train import main, parse
from tinygpt_jax.config import Config
from tinygpt_jax.errors import UserError
from tinygpt_jax.runs.checkpoint_files import checkpoints
from tinygpt_jax.runs.folder import check_is_ours
from tinygpt_jax.training.checkpoint import open_run
from tinygpt_jax.training.loop import train
from tinygpt_jax.training.parts import announce

TINY = (
    "--preset quickstart --builtin-stories 300 --n-layers 1 --d-model 32 --n-heads 2 --d-ff 64 --dropout 0.2 "
    "--batch-size 8 --steps 10 --eval-every 4 --eval-batches 2 --log-every 3 --warmup-steps 3"
).split()


def start(workdir, *flags, cwd=None, **environment):
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", "--workdir", str(workdir), *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.fixture
def refused(capsys):
    """Call the command here; returns its exit code and its standard error, which is one line that is no traceback."""

    def call(workdir, *flags):
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda: main(["--workdir", str(workdir), *flags]))
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(error) == 1
        return stop.value.code, error[0]

    return call


def lines(workdir, name):
    return [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    code, errors = victim.wait(start(workdir, *TINY))
    assert code == 0, errors
    return workdir, errors


def test_a_run_leaves_what_it_promises(whole_run):
    workdir, errors = whole_run
    steps = [line["step"] for line in lines(workdir, "metrics") if "loss" in line]
    assert steps == [1, 3, 6, 9, 10]
    assert [line["step"] for line in lines(workdir, "metrics") if "validation_loss" in line] == [4, 8, 10]
    assert (
        abs(
            lines(workdir, "metrics")[0]["loss"]
            - np.log(json.loads((workdir / "corpus.json").read_text())["vocab_size"])
        )
        < 0.3
    )
    assert [(s["step"], s["prompt"]) for s in lines(workdir, "samples")][:2] == [(4, "Once upon a time"), (4, "")]
    assert all(s["text"].startswith(s["prompt"]) for s in lines(workdir, "samples"))
    assert (workdir / "report.html").stat().st_size > 10_000
    assert {p.name for p in (workdir / "plots").iterdir()} >= {"loss.png", "perplexity.png", "word_cloud.png"}
    assert "Traceback" not in errors


def test_a_finished_run_says_so_and_stays_as_it_is(whole_run, capsys):
    """Also where fewer steps are asked for than are done, or settings that may change."""
    workdir, _ = whole_run
    before = {name: (workdir / name).read_bytes() for name in ("config.json", "corpus.json", "metrics.jsonl")}
    main(["--workdir", str(workdir), *TINY, "--log-every", "4", "--eval-batches", "1"])
    main(["--workdir", str(workdir), *TINY, "--steps", "5"])
    said = capsys.readouterr().out
    assert "is finished: 10 steps are done. To go on: --steps 20" in said and "The run as a page: " in said
    assert before == {name: (workdir / name).read_bytes() for name in before}


def test_a_finished_run_draws_the_report_that_is_missing(whole_run, tmp_path, capsys):
    """A process killed after the last checkpoint, whose run never gets its page."""
    workdir = shutil.copytree(whole_run[0], tmp_path / "run")
    (workdir / "report.html").unlink()
    config = (workdir / "config.json").read_bytes()
    (workdir / "config.json").write_bytes(config[:-9])
    main(["--workdir", str(workdir), *TINY])
    assert (workdir / "report.html").stat().st_size > 10_000
    # and a damaged configuration is named
    assert (workdir / "config.json").read_bytes() == config and "config.json is damaged" in capsys.readouterr().err


def test_a_run_without_its_checkpoints_is_not_written_over(whole_run, tmp_path, refused):
    workdir = shutil.copytree(whole_run[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    before = {name: (workdir / f"{name}.jsonl").read_bytes() for name in ("metrics", "samples", "timings")}
    code, error = refused(workdir, *TINY)
    assert code == 1 and "none of its checkpoints: put them back" in error
    assert before == {name: (workdir / f"{name}.jsonl").read_bytes() for name in before}


def test_resuming_on_other_stories_is_refused(whole_run, tmp_path, refused):
    """The same vocabulary and settings, and another text under the same name."""
    source = tmp_path / "stories.txt"
    source.write_text("\n\n".join(f"Once there were {i} red balls. The end." for i in range(100)))
    flags = [*TINY, "--data", str(source), "--vocabulary", "gpt2", "--steps", "2", "--context-length", "8"]
    main(["--workdir", str(tmp_path / "run"), *flags])
    source.write_text("\n\n".join(f"Once there were {i} blue balls. The end." for i in range(100)))
    code, error = refused(tmp_path / "run", *flags)
    assert code == 2 and f"{source} has changed since the run" in error and "vocab_size" not in error


def test_resuming_on_stories_of_another_vocabulary_is_refused_for_the_stories(whole_run, refused, tmp_path):
    """The advice to leave out a flag that nobody gave."""
    shutil.copytree(whole_run[0], tmp_path / "run")
    source = tmp_path / "stories.txt"
    source.write_text("\n\n".join(f"Once there were {i} red balls. The end." for i in range(100)))
    code, error = refused(tmp_path / "run", "--data", str(source))
    assert code == 2 and f"the stories of {source} are not those it was trained on, builtin" in error
    assert "vocab_size" not in error and "--vocab-size" not in error


def test_an_interrupted_run_ends_as_one_that_was_not(whole_run, tmp_path):
    """Bit for bit: parameters, optimizer state, metrics and samples, with dropout on, in other processes, from another
    current folder, with a relative name that is not ASCII and in a system that knows only ASCII."""
    workdir, name, moment = tmp_path / "zwei Läufe ж", "zwei Läufe ж", random.Random(0)
    elsewhere = {"cwd": tmp_path, "PYTHONPATH": os.getcwd(), "LC_ALL": "C", "TZ": "Pacific/Apia"}
    for aim, how in (("save", signal.SIGKILL), ("evaluation", signal.SIGKILL), ("update", signal.SIGTERM)):
        process = start(name, *TINY, **elsewhere)
        victim.wait_for(process, workdir, aim, moment)
        process.send_signal(how)
        code, errors = victim.wait(process)
        assert code == (-how if how == signal.SIGKILL else 0), errors
    assert "SIGTERM: saved at step" in errors or checkpoints(workdir)[-1].step == 10
    code, errors = victim.wait(start(name, *TINY, **elsewhere))
    assert code == 0, errors
    compare("the interrupted run", outcome(workdir), outcome(whole_run[0]))


@pytest.mark.parametrize("how", ["hangup", "lost reader", "nohup"])
def test_a_hangup_or_a_lost_reader_saves_and_ends(tmp_path, how):
    """`ssh` closed, or `| head`: nothing was saved. Under nohup a run outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if how == "nohup" else signal.SIG_DFL)  # which is inherited
    process = start(tmp_path, *TINY, "--steps", "100000", "--eval-every", "100000", "--log-every", "50")
    signal.signal(signal.SIGHUP, before)
    victim.wait_for(process, tmp_path, "update", random.Random(0))
    if how == "lost reader":
        process.stderr.close()
    else:
        process.send_signal(signal.SIGHUP)
    if how == "nohup":
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert len(checkpoints(tmp_path)) == 1


@pytest.fixture
def boards(monkeypatch):
    """TensorBoard's writers that were made."""
    made = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            self.folder, self.purge_step, self.scalars, self.is_closed = folder, purge_step, [], False
            made.append(self)

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

        def close(self):
            self.is_closed = True

    module = ModuleType("tensorboardX")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    return made


def test_further_saves_change_no_line_and_tensorboard_has_each_once(whole_run, tmp_path, boards):
    """A run that fails at its first evaluation goes on from the save before it."""
    arguments, _ = parse([*TINY, "--save-every", "3", "--tensorboard"])

    def fail(*_):
        raise UserError("no story")

    with pytest.raises(UserError, match="no story"):
        train(arguments.config, tmp_path, sampler=fail)
    assert [saved.step for saved in checkpoints(tmp_path)] == [3]
    assert train(arguments.config, tmp_path)
    assert [saved.step for saved in checkpoints(tmp_path)] == [9, 10]
    assert [saved.progress().validation_loss is None for saved in checkpoints(tmp_path)] == [True, False]
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole_run[0] / name).read_bytes()

    failed, resumed = boards
    assert failed.is_closed and resumed.is_closed
    assert (failed.folder, failed.purge_step, resumed.purge_step) == (str(tmp_path / "tensorboard"), 1, 4)
    assert failed.scalars[-1][2] == 4  # which is hidden: TensorBoard shows nothing of a purge_step and after
    shown = [scalar for scalar in failed.scalars if scalar[2] < resumed.purge_step] + resumed.scalars
    assert shown == [(*item, line["step"]) for line in lines(tmp_path, "metrics") for item in line.items()]


@pytest.mark.parametrize(
    ("steps", "stories", "epochs", "warnings"),
    [
        (2200, 54_000, "0.65", []),  # the quickstart
        (
            1600,
            330,
            "77.6",
            ["each story is seen 78 times and will be known by heart: give more stories, or --steps 206"],
        ),
        (99, 54_000, "0.03", ["warmup_steps 100 is more than the 99 steps: learning_rate 0.003 is never reached"]),
    ],
)
def test_the_first_lines_name_the_epochs_and_what_is_probably_not_wanted(capsys, steps, stories, epochs, warnings):
    tokenizer, split = SimpleNamespace(vocab_size=1000), SimpleNamespace(n_stories=stories)
    parts = SimpleNamespace(
        config=presets.get("quickstart").config,
        corpus=SimpleNamespace(train=split, validation=split, tokenizer=tokenizer),
        model=SimpleNamespace(compute_dtype="float32"),
        total_steps=steps,
        batches=SimpleNamespace(per_epoch=stories / 16),
    )
    announce(parts, SimpleNamespace(params={"weight": np.zeros(1_234_567)}), "training")  # pyright: ignore
    said = capsys.readouterr()
    assert said.out.startswith("training 1.2 M parameters in float32 on CPU")
    assert said.out.endswith(f"{steps:,} steps of 16 x 120 tokens, {epochs} epochs\n")
    assert len(said.err.splitlines()) == len(warnings)
    assert all(f"warning: {warning}" in said.err for warning in warnings)


def test_resuming_with_other_settings_names_them(whole_run, refused):
    workdir, _ = whole_run
    # Before the stories are looked for.
    code, error = refused(workdir, *TINY, "--d-model", "64", "--learning-rate", "0.5", "--data", "nowhere.txt")
    assert code == 2
    assert "model.d_model: 64 here, 32 there" in error
    assert "optimizer.learning_rate: 0.5 here, 0.003 there" in error


def test_a_run_can_be_made_longer_or_moved(whole_run, tmp_path, capsys):
    """Length and cadence are free to change, and without --preset a run keeps its own configuration."""
    workdir, _ = whole_run
    moved = shutil.copytree(workdir, tmp_path / "with spaces and ü")
    main(["--workdir", str(moved), *"--steps 12 --eval-every 6 --save-every 11 --eval-batches 1".split()])
    assert "going on with the run in" in capsys.readouterr().out
    assert [saved.step for saved in checkpoints(moved)][-2:] == [11, 12]
    rows = [json.loads((folder / "corpus.json").read_text())["evaluated_rows"] for folder in (workdir, moved)]
    assert rows == [2 * 8, 1 * 8]  # the entropies to compare a loss with are of the rows that it is measured on


@pytest.mark.parametrize(
    ("flags", "steps", "epochs"),
    [
        ("", 2200, 5),  # the preset's
        ("--epochs 2", None, 2),
        ("--epochs=2", None, 2),
        ("--steps 7 --epochs 2", None, 2),
        ("--epochs 2 --steps 7", 7, 2),
        ("--epochs 2 --steps None", None, 2),
    ],
)
def test_of_steps_and_epochs_the_last_one_given_counts(flags, steps, epochs):
    """Epochs that are asked for, and steps of the preset that are done without a word."""
    arguments, why = parse(["--preset", "quickstart", *flags.split()])
    assert (arguments.config.training.steps, arguments.config.training.epochs) == (steps, epochs)
    assert why.endswith("with your changes" if flags else "on the built-in stories, for any CPU, in minutes")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, refused):
    """With the step, the rate and what to try; the state before it is kept."""
    hot = "--learning-rate 1e38 --clip-norm 1e30 --warmup-steps 0 --weight-decay 0".split()
    code, error = refused(tmp_path, *TINY, *hot)
    assert code == 1
    assert (
        error.startswith("error: step ") and "at learning rate 9.76e+37" in error and "Try in a new --workdir" in error
    )
    params = open_run(tmp_path, "last").params
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_a_second_process_in_the_same_folder_is_refused(tmp_path, refused):
    from tinygpt_jax.runs.folder import sole_process

    with sole_process(tmp_path):
        code, error = refused(tmp_path, *TINY)
    assert code == 1 and f"(pid {os.getpid()}) is training in" in error


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--n-heads", "5"], 2, "n_heads 5: must divide d_model 128; try n_heads 4"),
        (["--workdir", ""], 2, "--workdir is empty: give a folder"),
        (["--context-length", "0"], 2, "context_length 0: must be at least 1"),
        (["--preset", "huge"], 2, "unknown preset 'huge'; there are: quickstart, laptop, tinystories"),
        (["--d-modle", "3"], 2, "Unrecognized options: --d-modle, 3; perhaps --d-model?"),
        (["--n-layers", "many"], 2, "Error parsing --n-layers: not a whole number: 'many' (--help"),
        (["--steps", "1e3"], 2, "Error parsing --steps: not a whole number: '1e3' (--help"),
        (["--dropout", "x"], 2, "Error parsing --dropout: not a number: 'x' (--help"),
        (["--data", "nowhere.txt"], 2, "nowhere.txt"),
        (["--vocab-size", "77"], 2, "Unrecognized options: --vocab-size, 77"),
        (["--epochs", "1e300"], 2, "epochs 1e+300: must be at least 1e-06 and at most 99999999"),
        (
            ["--epochs", "3e7", "--steps", "None"],
            2,
            "epochs 30000000.0: must be at most 99,999,999 steps, not 493,125,000",
        ),
        # Said before the stories are looked at.
        (["--n-layers", "1024", "--d-model", "65536", "--data", "nowhere.txt"], 1, "this model does not fit: 17,6"),
        (["--device", "gpu"], 1, "--device gpu"),
        (["--builtin-stories", "20", "--batch-size", "64"], 1, "fewer than one batch of 64"),
        (["--batch-size", "6", "--gradient-accumulation", "4"], 2, "gradient_accumulation 4: must divide batch_size 6"),
    ],
)
def test_bad_input_gives_one_line_and_leaves_nothing(tmp_path, refused, flags, code, says):
    workdir = tmp_path / "run"
    base = [] if "--preset" in flags else ["--preset", "quickstart", "--steps", "1", "--builtin-stories", "300"]
    result, error = refused(workdir, *base, *flags)
    assert result == code and says in error
    assert not workdir.exists()


def test_a_workdir_that_is_a_file(tmp_path, refused):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        code, error = refused(workdir, *TINY)
        assert code == 1 and "is a file; choose another folder" in error
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "samples.jsonl", "report.html", "plots/mine.png"])
def test_somebody_elses_files_are_not_written_over(tmp_path, refused, name):
    """Those of another program that have the same names."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"mine": 1}')
    code, error = refused(tmp_path, *TINY)
    first = name.partition("/")[0]
    assert code == 1 and f"holds {first} and no run of ours" in error and "choose another --workdir" in error
    assert [path.name for path in tmp_path.iterdir()] == [first] and (tmp_path / name).read_text() == '{"mine": 1}'
    (tmp_path / "config.json").write_text(Config().to_json())
    check_is_ours(tmp_path)  # a run that was killed before its first checkpoint starts again


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_without_permission(tmp_path, refused):
    tmp_path.chmod(0o500)
    code, error = refused(tmp_path / "run", *TINY)
    assert code == 1 and "no permission to write" in error
