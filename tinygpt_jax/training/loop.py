"""A training run from start to finish: prepare, restore, loop."""

import dataclasses
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from tinygpt_jax.config import FREE_TO_CHANGE, Config
from tinygpt_jax.data.corpus import prepare
from tinygpt_jax.distributed.together import agree, in_turn, is_first, of_first, others_may_go, running
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.evaluation import evaluate
from tinygpt_jax.files import sync, write_atomically
from tinygpt_jax.generation import Sampling, generate
from tinygpt_jax.model import GPT
from tinygpt_jax.runs.checkpoint_files import Checkpoint, Progress, saved_config
from tinygpt_jax.runs.corpus_summary import write_summary
from tinygpt_jax.runs.folder import check_folder, check_history, check_is_ours, described, has_changed, sole_process
from tinygpt_jax.tokenizer import Tokenizer
from tinygpt_jax.training import checkpoint
from tinygpt_jax.training.metrics import NonFiniteError, TrainingLog, event_writer
from tinygpt_jax.training.origin import find_origin
from tinygpt_jax.training.parts import Parts, announce, check_memory
from tinygpt_jax.training.saving import Saver
from tinygpt_jax.training.sharding import make_mesh, on_one_device, put_batch
from tinygpt_jax.training.step import TrainState, initial_state, memory_errors
from tinygpt_jax.training.stopping import Stop, stop_signals

# (model, parameters, tokenizer, seed) -> for each prompt, itself and a story that begins with it
Sampler = Callable[[GPT, Any, Tokenizer, int], list[tuple[str, str]]]

SAMPLE_PROMPTS = ("Once upon a time", "")
SAMPLING = Sampling(temperature=0.8)


def write_samples(model: GPT, params: Any, tokenizer: Tokenizer, seed: int) -> list[tuple[str, str]]:
    """A `Sampler`: stories for `SAMPLE_PROMPTS`, as long as the context at most."""
    length = model.config.context_length
    stories = generate(model, params, tokenizer, SAMPLE_PROMPTS, SAMPLING, max_new_tokens=length, seed=seed)
    return [(story.prompt, story.prompt + story.text) for story in stories]


def train(config: Config, workdir: Path, *, mesh: Mesh | None = None, sampler: Sampler = write_samples) -> bool:
    """Train as `config` says, or go on where the run in `workdir` stopped. Returns whether all steps are done.

    Ctrl-C, SIGTERM, SIGHUP and a lost reader of the output let the update under way finish, save, and return; a second
    Ctrl-C stops at once.

    Args:
        config: all settings; the model's `vocab_size` becomes that of the stories' tokenizer.
        workdir: the run's folder; made if needed.
        mesh: the devices (default: all).
        sampler: writes the stories that show at each evaluation what was learned.

    Raises:
        UsageError: the configuration cannot work, or is not that of the run to resume.
        UserError: the data, the folder or the device is at fault, its memory is full, or the loss is not finite.
    """
    mesh = mesh or make_mesh()
    in_turn(lambda: _check(config, workdir))
    agree(_facts(config, mesh), "start them with the same code and the same flags")
    check_memory(config, mesh)
    origin = in_turn(lambda: find_origin(config, workdir))
    corpus = in_turn(lambda: prepare(config.data, tokenizer=origin.tokenizer))
    parts = Parts(dataclasses.replace(config, origin=origin.config), corpus, mesh)
    agree({"stories": corpus.fingerprint}, "give each machine the same --data")
    agree({"parameters": str(origin.config.sha256)}, "give each machine the same --init-from")
    with ExitStack() as held, memory_errors(config.training), others_may_go(), stop_signals() as stop:
        _claim(workdir, held)
        saved, progress = _where_it_stands(parts, workdir)
        if progress.step >= parts.total_steps:
            print(f"{workdir} is finished: {progress.step:,} steps are done. To go on: --steps {2 * progress.step}")
            return True
        if saved:
            state = checkpoint.restore_state(saved, parts.optimizer, parts.mesh)
        else:
            state = initial_state(parts.model, parts.optimizer, config.training.seed, parts.mesh, origin.params)
        tunes = not saved and origin.params is not None
        del origin  # a copy of all parameters
        announce(parts, state, f"resuming after step {progress.step:,} of" if saved else "training")
        saver = Saver(workdir, parts.config, parts.corpus.tokenizer)
        with closing(TrainingLog(parts, workdir if is_first() else None, progress)) as log, saver:
            if tunes:  # what it could before, to compare with
                saver.save(state, log.progress(0, _evaluate(parts, state.params, 0, log, sampler)))
            return _update_to_the_end(parts, state, log, saver, sampler, stop)


def _update_to_the_end(
    parts: Parts, state: TrainState, log: TrainingLog, saver: Saver, sampler: Sampler, stop: Stop
) -> bool:
    """Update, evaluate and save, until the last step (true) or until `stop` says so."""
    training, step, stopping = parts.config.training, int(state.step), False
    try:
        for batch in parts.batches.iterate(step):
            state, metrics = parts.update(state, put_batch(batch, parts.mesh), step)
            step += 1
            log.add(step, metrics)
            saver.check()
            is_last, stopping = step == parts.total_steps, stop.after(step)
            evaluates = is_last or step % training.eval_every == 0
            saves = evaluates or stopping or (training.save_every and step % training.save_every == 0)
            if saves:
                log.read()
                with log.pause():
                    if evaluates:  # not before the last save is whole: see `check_history`
                        saver.wait()
                    loss = _evaluate(parts, state.params, step, log, sampler) if evaluates else None
                    saver.save(state, log.progress(step, loss))
            if is_last or stopping:
                break
    except NonFiniteError:
        # Updates after the bad one changed nothing: this is the state before it.
        saver.save(state, log.progress(int(state.step), None))
        saver.wait()
        raise
    saver.wait()
    if stopping:
        log.note(f"{stop}: saved at step {step:,}. The same command goes on from there.")
    return step == parts.total_steps


def _evaluate(parts: Parts, params: Any, step: int, log: TrainingLog, sampler: Sampler) -> float:
    """Measure the fixed validation batches, write a story for each prompt, and return the loss."""
    with jax.set_mesh(parts.mesh):
        result = evaluate(parts.model, params, (put_batch(batch, parts.mesh) for batch in parts.validation))
    log.evaluated(step, result)
    params = on_one_device(params, parts.mesh)
    if is_first():
        log.sampled(step, sampler(parts.model, params, parts.corpus.tokenizer, parts.config.training.seed))
    return result.loss


def _check(config: Config, workdir: Path) -> None:
    """Raise UserError if it is known before any work that this run cannot be."""
    check_folder(workdir)
    if saved_before := saved_config(workdir):
        _check_settings(config, saved_before, workdir)
    else:
        check_is_ours(workdir)
    if config.training.tensorboard:
        event_writer()  # missing, it is missed before stories are prepared for hours


def _facts(config: Config, mesh: Mesh) -> dict[str, str]:
    """What all processes must have been started with; where the stories lie may differ between machines."""
    settings = json.loads(config.to_json())
    facts = {f"{group}.{name}": str(value) for group, values in settings.items() for name, value in values.items()}
    del facts["data.source"], facts["data.cache_dir"]
    return {**facts, "mesh": ",".join(f"{axis}={size}" for axis, size in mesh.shape.items()), **running()}


def _claim(workdir: Path, held: ExitStack) -> None:
    """Hold the run's folder, until `held` is closed. All processes must see the same one.

    Raises:
        UserError: another run holds it, or they do not.
    """

    def holder() -> str:
        lock = workdir / ".lock"
        return f"{lock.read_text()} since {lock.stat().st_mtime_ns}" if lock.is_file() else ""

    def claim() -> str:
        held.enter_context(sole_process(workdir))
        sync(workdir / ".lock")  # so that other machines see it
        return holder()

    def compare() -> None:
        if holder() != first:
            raise UserError(f"--workdir {workdir} is not the folder of process 0: give one that all machines share")

    first = of_first(claim)
    in_turn(compare)


def _where_it_stands(parts: Parts, workdir: Path) -> tuple[Checkpoint | None, Progress]:
    """The checkpoint to go on from, if there is one. Process 0 looks for it, and writes what the run is."""

    start = Progress(step=0, corpus=parts.corpus.fingerprint)

    def look() -> str:
        found = _matching_checkpoint(parts, workdir)
        _describe(parts, workdir, found, found.progress() if found else start)
        return str(found.step) if found else ""

    step = of_first(look)
    saved = Checkpoint.of(workdir, int(step)) if step else None
    return saved, saved.progress() if saved else start


def _matching_checkpoint(parts: Parts, workdir: Path) -> Checkpoint | None:
    """The newest intact checkpoint to go on from, if there is one.

    Raises:
        UsageError: it was trained with other settings, or on other stories.
        UserError: there is none, and metrics tell that there was.
    """
    newest = checkpoint.newest_intact(workdir)
    if newest is None:
        check_history(workdir)
        return None
    progress, saved = newest.progress(), newest.config()
    _check_settings(parts.config, saved, workdir)  # again, under the lock
    source, then = parts.config.data.source, saved.data.source
    if progress.corpus not in (None, parts.corpus.fingerprint):
        problem = f"the stories of {source} are not those it was trained on, {then}"
        if source == then:
            problem = f"{source} has changed since the run"
    elif newest.tokenizer().fingerprint != parts.corpus.tokenizer.fingerprint:
        problem = f"the vocabulary of {source} is not the one it was trained with"
    else:
        return newest
    raise UsageError(f"{workdir} cannot go on: {problem}; give the same stories, or another --workdir")


def _check_settings(config: Config, saved: Config, workdir: Path) -> None:
    """Raise UsageError if these are not the settings of the run that was saved here."""
    if differing := config.differences(saved, ignore=FREE_TO_CHANGE):
        raise UsageError(
            f"{workdir} holds a run with another configuration ({'; '.join(differing)}): "
            "give the same settings, or another --workdir"
        )


def _describe(parts: Parts, workdir: Path, saved: Checkpoint | None, progress: Progress) -> None:
    """Write the files that say what this run is; the summary, which takes a while, only where it would be another."""
    before = saved.config() if saved else parts.config
    # A run that is finished stays what it was, whatever is asked for now.
    config = before if progress.step >= parts.total_steps else parts.config
    path, found = workdir / "config.json", described(workdir)
    if saved and path.exists() and (found is None or found.differences(before, ignore=FREE_TO_CHANGE)):
        print(f"warning: {path} is damaged or was changed: it is written anew", file=sys.stderr)
    write_atomically(path, config.to_json().encode())
    mark = progress.files.get("corpus.json")
    told, would_tell = ((x.data.source, x.training.eval_batches) for x in (before, config))  # the rest cannot change
    if mark is None or told != would_tell or has_changed(workdir / "corpus.json", mark):
        write_summary(workdir, config, parts.corpus)
