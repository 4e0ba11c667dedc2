"""Whole runs through the train command: in processes of their own where it matters, else in this one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import cli
from experiments.train import main
from tinygpt_jax.training.checkpoint import restore_state
from tinygpt_jax.training.checkpoint_files import checkpoints

TINY = (
    "--preset quickstart --builtin-stories 300 --n-layers 1 --d-model 32 --n-heads 2 --d-ff 64 --dropout 0.2 "
    "--batch-size 8 --steps 10 --eval-every 4 --eval-batches 2 --log-every 3 --warmup-steps 3"
).split()


def train(workdir, *flags, check=True, **environment):
    """Run the command to its end; returns the finished process."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", "--workdir", str(workdir), *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


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


def arrays(workdir):
    """Every number of the newest checkpoint, optimizer state included."""
    from tinygpt_jax.training.loop import _Parts, prepare, replicated

    newest = checkpoints(workdir)[-1]
    parts = _Parts(newest.config(), prepare(newest.config().data))
    import jax

    return jax.tree.leaves(restore_state(newest, parts.optimizer, replicated(parts.mesh)))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(workdir, *TINY)


def test_a_run_leaves_what_it_promises(whole_run):
    workdir, done = whole_run
    steps = [line["step"] for line in lines(workdir, "metrics") if "loss" in line]
    assert steps == [1, 3, 6, 9]
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
    assert "Traceback" not in done.stderr


def test_a_finished_run_says_so(whole_run, capsys):
    workdir, _ = whole_run
    before = (workdir / "metrics.jsonl").read_bytes()
    main(["--workdir", str(workdir), *TINY])
    assert "is finished: 10 steps are done" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_draws_the_report_that_is_missing(whole_run, tmp_path):
    """A process killed after the last checkpoint, whose run never gets its page."""
    workdir = shutil.copytree(whole_run[0], tmp_path / "run")
    (workdir / "report.html").unlink()
    main(["--workdir", str(workdir), *TINY])
    assert (workdir / "report.html").stat().st_size > 10_000


def test_resuming_on_other_stories_is_refused(whole_run, tmp_path, refused):
    """The same vocabulary and settings, and another text under the same name."""
    source = tmp_path / "stories.txt"
    source.write_text("\n\n".join(f"Once there were {i} red balls. The end." for i in range(100)))
    flags = [*TINY, "--data", str(source), "--vocabulary", "gpt2", "--steps", "2", "--context-length", "8"]
    main(["--workdir", str(tmp_path / "run"), *flags])
    source.write_text("\n\n".join(f"Once there were {i} blue balls. The end." for i in range(100)))
    code, error = refused(tmp_path / "run", *flags)
    assert code == 2 and "are not those it was trained on" in error


def stop_after(workdir, step, how, *flags):
    """Start the command and send it a signal once its metrics show `step`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", "--workdir", str(workdir), *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_ends_as_one_that_was_not(whole_run, tmp_path, how):
    """Bit for bit: parameters, optimizer state, metrics and samples, with dropout on, in another process."""
    workdir, _ = whole_run
    code, errors = stop_after(tmp_path, 4, how, *TINY)
    if how == signal.SIGTERM:
        assert code == 0 and ("SIGTERM: saved at step" in errors or checkpoints(tmp_path)[-1].step == 10)
    train(tmp_path, *TINY)
    for name in ("metrics", "samples"):
        assert (tmp_path / f"{name}.jsonl").read_text() == (workdir / f"{name}.jsonl").read_text()
    for a, b in zip(arrays(workdir), arrays(tmp_path), strict=True):
        np.testing.assert_array_equal(a, b)


def test_resuming_with_other_settings_names_them(whole_run, refused):
    workdir, _ = whole_run
    code, error = refused(workdir, *TINY, "--d-model", "64", "--learning-rate", "0.5")
    assert code == 2
    assert "model.d_model: 64 here, 32 there" in error
    assert "optimizer.learning_rate: 0.5 here, 0.003 there" in error


def test_a_run_can_be_made_longer_or_moved(whole_run, tmp_path, capsys):
    """Length and cadence are free to change, and without --preset a run keeps its own configuration."""
    workdir, _ = whole_run
    moved = tmp_path / "with spaces and ü"
    shutil.copytree(workdir, moved)
    main(["--workdir", str(moved), "--steps", "12", "--eval-every", "6"])
    assert "going on with the run in" in capsys.readouterr().out
    assert checkpoints(moved)[-1].step == 12


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, refused):
    """With the step, the rate and what to try; the state before it is kept."""
    code, error = refused(tmp_path, *TINY, "--learning-rate", "1e38", "--clip-norm", "1e30", "--warmup-steps", "0")
    assert code == 1
    assert (
        error.startswith("error: step ") and "at learning rate 9.76e+37" in error and "Try in a new --workdir" in error
    )
    assert checkpoints(tmp_path)[-1].problem() is None
    state = arrays(tmp_path)
    assert all(np.isfinite(x).all() for x in state)


def test_a_second_process_in_the_same_folder_is_refused(tmp_path, refused):
    from tinygpt_jax.training.run_folder import sole_process

    with sole_process(tmp_path):
        code, error = refused(tmp_path, *TINY)
    assert code == 1 and f"(pid {os.getpid()}) is training in" in error


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--n-heads", "5"], 2, "n_heads 5: must divide d_model 128; try n_heads 4"),
        (["--context-length", "0"], 2, "context_length 0: must be at least 1"),
        (["--preset", "huge"], 2, "unknown preset 'huge'; there are: quickstart, laptop, tinystories"),
        (["--d-modle", "3"], 2, "Unrecognized options: --d-modle, 3; perhaps --d-model?"),
        (["--n-layers", "many"], 2, "--n-layers"),
        (["--data", "nowhere.txt"], 2, "nowhere.txt"),
        (["--vocab-size", "77"], 2, "vocab_size 77"),
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_without_permission(tmp_path, refused):
    tmp_path.chmod(0o500)
    code, error = refused(tmp_path / "run", *TINY)
    assert code == 1 and "no permission to write" in error
