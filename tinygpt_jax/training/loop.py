"""A training run from start to finish: prepare, restore, loop."""

import dataclasses
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from tinygpt_jax.config import FREE_TO_CHANGE, Config, ModelConfig
from tinygpt_jax.data.batches import TrainingBatches, evaluation_batches
from tinygpt_jax.data.corpus import Corpus, prepare
from tinygpt_jax.devices import describe_devices, resolve_dtype
from tinygpt_jax.errors import UsageError
from tinygpt_jax.evaluation import evaluate
from tinygpt_jax.files import write_atomically
from tinygpt_jax.generation import Sampling, generate
from tinygpt_jax.model import GPT
from tinygpt_jax.runs.checkpoint_files import Progress
from tinygpt_jax.runs.corpus_summary import write_summary
from tinygpt_jax.runs.folder import RunFiles, check_folder, check_history, has_changed, sole_process
from tinygpt_jax.terminal import harmless
from tinygpt_jax.training import checkpoint
from tinygpt_jax.training.metrics import Display, NonFiniteError, TrainingLog
from tinygpt_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tinygpt_jax.training.saving import Saver
from tinygpt_jax.training.step import (
    TrainState,
    data_mesh,
    initial_state,
    make_train_step,
    memory_errors,
    put_batch,
    replicated,
)

SAMPLE_PROMPTS = ("Once upon a time", "")
SAMPLING = Sampling(temperature=0.8)


def train(config: Config, workdir: Path) -> bool:
    """Train as `config` says, or go on where the run in `workdir` stopped. Returns whether all steps are done.

    Ctrl-C and SIGTERM let the update under way finish, save, and return; a second Ctrl-C stops at once.

    Raises:
        UsageError: the configuration cannot work, or is not that of the run to resume.
        UserError: the data, the folder or the device is at fault, its memory is full, or the loss is not finite.
    """
    check_folder(workdir)
    corpus = prepare(config.data)
    config = _with_vocabulary(config, corpus)
    parts = _Parts(config, corpus)
    with sole_process(workdir), memory_errors(config.training), _stop_signals() as stop:
        restored = _restore(parts, workdir)
        if restored is None:
            check_history(workdir)
        state, progress = restored or _begin(parts, workdir)
        if progress.step >= parts.total_steps:
            print(f"{workdir} is finished: {progress.step:,} steps are done. To go on: --steps {2 * progress.step}")
            return True
        _announce(parts, state, f"resuming after step {progress.step:,} of" if restored else "training")
        loop = _Loop(parts, workdir, state, progress)
        try:
            loop.run(stop)
        finally:
            loop.close()
        return loop.step == parts.total_steps


class _Parts:
    """What a run is made of, all of it determined by the configuration and the corpus."""

    def __init__(self, config: Config, corpus: Corpus) -> None:
        self.config, self.corpus = config, corpus
        training = config.training
        rows = {
            "layout": config.data.layout,
            "context_length": config.model.context_length,
            "batch_size": training.batch_size,
            "end_of_text": corpus.tokenizer.end_of_text,
        }
        self.mesh = data_mesh()
        self.model = GPT(config.model, resolve_dtype(training.compute_dtype), training.remat)
        self.batches = TrainingBatches(corpus.train, seed=training.seed, **rows)
        self.validation = evaluation_batches(corpus.validation, limit=training.eval_batches, **rows)
        self.total_steps = training.steps or max(1, round(training.epochs * self.batches.per_epoch))
        self.schedule = learning_rate_schedule(config.optimizer, self.total_steps)
        self.optimizer = make_optimizer(config.optimizer, self.total_steps)
        self.update = make_train_step(self.model, self.optimizer, training, self.mesh)


class _Loop:
    """The updates of one process, from a state to the last step or to a signal."""

    def __init__(self, parts: _Parts, workdir: Path, state: TrainState, progress: Progress) -> None:
        self.parts, self.workdir, self.state, self.step = parts, workdir, state, progress.step
        self.files = RunFiles(workdir, progress.files)
        self.saver = Saver(workdir, parts.config, parts.corpus.tokenizer)
        self.display = Display(parts.config, self.step, parts.total_steps)
        self.log = TrainingLog(
            parts.config, self.files, self.display, parts.schedule, parts.batches.per_epoch, progress.unlogged
        )

    def run(self, stop: list[int]) -> None:
        """Update, evaluate and save, until the last step or until `stop` holds a signal."""
        parts, eval_every = self.parts, self.parts.config.training.eval_every
        with self.saver:
            try:
                for batch in parts.batches.iterate(self.step):
                    self.state, metrics = parts.update(self.state, put_batch(batch, parts.mesh), self.step)
                    self.step += 1
                    self.log.add(self.step, metrics)
                    self.saver.check()
                    if self.step % eval_every == 0 or self.step == parts.total_steps:
                        self.log.read()
                        self.saver.wait()  # metrics of two evaluations without a checkpoint: see `check_history`
                        self.save(self.evaluate())
                    elif stop:
                        self.log.read()
                        self.save(validation_loss=None)
                    if stop or self.step == parts.total_steps:
                        break
            except NonFiniteError:
                # Updates after the bad one changed nothing: this is the state before it.
                self.step = int(self.state.step)
                self.save(validation_loss=None)
                self.saver.wait()
                raise
        if stop:
            name = signal.Signals(stop[0]).name
            self.display.note(f"{name}: saved at step {self.step:,}. The same command goes on from there.")

    def evaluate(self) -> float:
        """Measure the fixed validation batches, write a story for each prompt, and return the loss."""
        parts = self.parts
        result = evaluate(parts.model, self.state.params, (put_batch(b, parts.mesh) for b in parts.validation))
        line = {
            "step": self.step,
            "validation_loss": result.loss,
            "validation_perplexity": result.perplexity,
            "validation_accuracy": result.token_accuracy,
        }
        self.files.write("metrics.jsonl", line)
        self.log.board(line)
        stories = generate(
            parts.model,
            self.state.params,
            parts.corpus.tokenizer,
            list(SAMPLE_PROMPTS),
            SAMPLING,
            max_new_tokens=parts.config.model.context_length,
            seed=parts.config.training.seed,
        )
        for prompt, story in zip(SAMPLE_PROMPTS, stories, strict=True):
            self.files.write("samples.jsonl", {"step": self.step, "prompt": prompt, "text": prompt + story.text})
        self.display.note(
            f"step {self.step:,}: validation loss {result.loss:.4f}, perplexity {result.perplexity:,.2f}\n"
            f"    {harmless(' '.join((SAMPLE_PROMPTS[0] + stories[0].text).split()))}"
        )
        self.display.forget_time()
        return result.loss

    def save(self, validation_loss: float | None) -> None:
        """Have a checkpoint of the present state written, behind the updates that follow."""
        fingerprint, files = self.parts.corpus.fingerprint, self.files.marks()
        progress = Progress(self.step, fingerprint, validation_loss, self.log.unlogged, files)
        self.saver.save(self.state, progress)
        self.display.forget_time()

    def close(self) -> None:
        """Close the files and leave the progress bar."""
        self.display.close()
        self.files.close()


def _begin(parts: _Parts, workdir: Path) -> tuple[TrainState, Progress]:
    """Fresh parameters, and the files that say what this run is."""
    _write_config(workdir, parts.config)
    write_summary(workdir, parts.config, parts.corpus)
    state = initial_state(parts.model, parts.optimizer, parts.config.training.seed, parts.mesh)
    return state, Progress(step=0, corpus=parts.corpus.fingerprint)


def _restore(parts: _Parts, workdir: Path) -> tuple[TrainState, Progress] | None:
    """The state of the newest intact checkpoint, if there is one.

    Raises:
        UsageError: it was trained with a configuration or data that differ in more than may change.
    """
    newest = checkpoint.newest_intact(workdir)
    if newest is None:
        return None
    progress, saved = newest.progress(), newest.config()
    differing, source = parts.config.differences(saved, ignore=FREE_TO_CHANGE), parts.config.data.source
    if progress.corpus not in (None, parts.corpus.fingerprint):
        differing.insert(0, f"the stories of {source} are not those it was trained on, {saved.data.source}")
    elif newest.tokenizer().fingerprint != parts.corpus.tokenizer.fingerprint:
        differing.insert(0, f"the vocabulary of {source} is not the one it was trained with")
    if differing:
        raise UsageError(
            f"{workdir} holds a run with another configuration ({'; '.join(differing)}): "
            "give the same settings, or another --workdir"
        )
    _write_config(workdir, parts.config)
    if "corpus.json" not in progress.files or has_changed(workdir / "corpus.json", progress.files["corpus.json"]):
        write_summary(workdir, parts.config, parts.corpus)
    return checkpoint.restore_state(newest, parts.optimizer, replicated(parts.mesh)), progress


def _write_config(workdir: Path, config: Config) -> None:
    write_atomically(workdir / "config.json", config.to_json().encode())


def _announce(parts: _Parts, state: TrainState, doing: str) -> None:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    training, data = parts.config.training, parts.corpus
    size = f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"
    print(
        f"{doing} {size} parameters in {parts.model.compute_dtype} on {describe_devices()}\n"
        f"{data.train.n_stories:,} stories to learn from, {data.validation.n_stories:,} held out, "
        f"{data.tokenizer.vocab_size:,} different tokens\n"
        f"{parts.total_steps:,} steps of {training.batch_size} x {parts.config.model.context_length} tokens"
    )


def _with_vocabulary(config: Config, corpus: Corpus) -> Config:
    """The configuration with the vocabulary size that the tokenizer has."""
    size = corpus.tokenizer.vocab_size
    if config.model.vocab_size not in (size, ModelConfig().vocab_size):
        raise UsageError(
            f"vocab_size {config.model.vocab_size}: the {config.data.vocabulary} vocabulary of these stories has "
            f"{size} tokens; leave --vocab-size out (--max-vocab makes a compact one smaller)"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list in place of dying; a second SIGINT is the usual KeyboardInterrupt."""
    received: list[int] = []

    def remember(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
