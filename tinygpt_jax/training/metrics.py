"""From the metrics of updates to lines in a run's files, in TensorBoard, and before the user's eyes."""

import errno
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from tinygpt_jax.devices import peak_flops
from tinygpt_jax.errors import UserError
from tinygpt_jax.evaluation import Evaluation
from tinygpt_jax.runs.checkpoint_files import Progress
from tinygpt_jax.runs.folder import add_line, cut_back, marks_of
from tinygpt_jax.terminal import duration, harmless
from tinygpt_jax.training.parts import Parts
from tinygpt_jax.training.step import StepMetrics


class NonFiniteError(UserError):
    """An update had a loss or a gradient that is not finite."""


class TrainingLog:
    """What a run says of itself, in its files, in TensorBoard and before the user's eyes.

    Each update's metrics are collected while they are still on the device, and a line tells of every `log_every` steps.
    The user sees a progress bar on a terminal, plain lines elsewhere, both on standard error.
    """

    def __init__(
        self, parts: Parts, workdir: Path | None, progress: Progress, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Go on after `progress`, with those of its updates that no line tells of yet.

        Without a folder nothing is written: of several processes only the first has one.
        """
        from tqdm import tqdm

        if workdir is not None:
            cut_back(workdir, progress.files)
        self._parts, self._workdir, self._start, self._timed = parts, workdir, progress.step, progress.step
        self._waiting: list[tuple[int, StepMetrics]] = []
        self._unlogged = list(progress.unlogged)  # (loss, gradient norm) of the updates read since the last line
        self._last_loss = self._unlogged[-1][0] if self._unlogged else None
        self._bar = tqdm(total=parts.total_steps, initial=progress.step, unit="step", dynamic_ncols=True, disable=None)
        self._clock, self._since, self._peak = clock, clock(), peak_flops()
        self._board = None
        if parts.config.training.tensorboard and workdir is not None:
            # An earlier process may have got further than its last checkpoint: steps that come again are shown once.
            self._board = event_writer()(str(workdir / "tensorboard"), purge_step=progress.step + 1)

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Take update number `step` (from 1). Lines are written for updates before it, which the device has done
        or is doing, so that reading them never leaves the device without work."""
        if self._waiting and self._ends_line(self._waiting[-1][0]):
            self.read()
        self._waiting.append((step, metrics))

    def read(self) -> None:
        """Fetch everything waiting, and write the line that is due.

        Raises:
            NonFiniteError: an update had a non-finite loss or gradient.
        """
        waiting, self._waiting = self._waiting, []
        for step, metrics in jax.device_get(waiting):
            loss, norm = float(metrics.loss), float(metrics.gradient_norm)
            if not metrics.applied:
                raise NonFiniteError(self._what_to_try(step, loss, norm))
            self._unlogged.append((loss, norm))
            self._last_loss = loss
            if self._ends_line(step):
                self._write_line(step)

    def evaluated(self, step: int, result: Evaluation) -> None:
        """Write what an evaluation after update `step` found."""
        perplexity, accuracy = result.perplexity, result.token_accuracy
        line = {"step": step, "validation_loss": result.loss, "validation_perplexity": perplexity}
        self._write(line | {"validation_accuracy": accuracy})
        self.note(f"step {step:,}: validation loss {result.loss:.4f}, perplexity {perplexity:,.2f}")

    def sampled(self, step: int, stories: Sequence[tuple[str, str]]) -> None:
        """Write what the model told after update `step`, by prompt, and show the first."""
        for prompt, text in stories:
            self._add("samples.jsonl", {"step": step, "prompt": prompt, "text": text})
        self.note(f"    {harmless(' '.join(stories[0][1].split()))}")

    def note(self, text: str) -> None:
        """Print a line of its own, above the bar where there is one. That nobody reads it is no failure here."""
        try:
            self._bar.write(text, file=sys.stderr)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            # The reader has gone, or the terminal: signals say so, and who hears them decides.
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115, or Python would try to write the rest again

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What is done inside is no update: its time counts for none."""
        began = self._clock()
        yield
        self._since += self._clock() - began

    def progress(self, step: int, validation_loss: float | None) -> Progress:
        """What a checkpoint of the state after update `step` keeps of it all, so that another log can go on."""
        fingerprint, files = self._parts.corpus.fingerprint, marks_of(self._workdir) if self._workdir else {}
        return Progress(step, fingerprint, validation_loss, tuple(self._unlogged), files)

    def close(self) -> None:
        """Close TensorBoard's file, and leave the progress bar as it stands."""
        if self._board is not None:
            self._board.close()
        self._bar.close()

    def _ends_line(self, step: int) -> bool:
        return step in (1, self._parts.total_steps) or step % self._parts.config.training.log_every == 0

    def _write_line(self, step: int) -> None:
        parts, model = self._parts, self._parts.config.model
        losses = [loss for loss, _ in self._unlogged]
        tokens_per_step = parts.config.training.batch_size * model.context_length
        line = {
            "step": step,
            "epoch": step / parts.batches.per_epoch,
            "tokens": step * tokens_per_step,
            "loss": math.fsum(losses) / len(losses),
            "learning_rate": float(parts.learning_rate(step - 1)),
            "gradient_norm": self._unlogged[-1][1],
        }
        self._unlogged.clear()
        self._write(line)
        now = self._clock()
        steps, seconds = step - self._timed, max(now - self._since, 1e-9)
        self._timed, self._since = step, now
        speed = steps * tokens_per_step / seconds
        timing = {"step": step, "seconds": seconds, "tokens_per_second": speed}
        text = f"loss {line['loss']:.4f}, {speed:,.0f} tokens/s"
        if self._peak:
            timing["share_of_peak"] = speed * model.flops_per_token / self._peak
            text += f", {timing['share_of_peak']:.0%} of peak"
        self._add("timings.jsonl", timing)
        if not self._bar.disable:  # which reckons for itself how much time is left
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            # The first update was compiled: its time says nothing of those to come.
            left = duration((parts.total_steps - step) * seconds / steps) if step > self._start + 1 else "unknown time"
            self.note(f"step {step:,}/{parts.total_steps:,}: {text}, {left} left")

    def _add(self, name: str, line: dict[str, Any]) -> None:
        if self._workdir is not None:
            add_line(self._workdir / name, line)

    def _write(self, line: dict[str, Any]) -> None:
        self._add("metrics.jsonl", line)
        if self._board is not None:
            for name, value in line.items():
                self._board.add_scalar(name, value, line["step"])

    def _what_to_try(self, step: int, loss: float, norm: float) -> str:
        what = f"the loss was {loss}" if not math.isfinite(loss) else f"the gradient norm was {norm}"
        last = "none" if self._last_loss is None else f"{self._last_loss:.4f}"
        rate = float(self._parts.learning_rate(step - 1))
        in_float32 = self._parts.model.compute_dtype == "float32"
        return (
            f"step {step}: {what} at learning rate {rate:.3g} (last finite loss: {last}); the state before it is "
            f"saved. Try in a new --workdir: --learning-rate {rate / 3:.1g}, or a longer --warmup-steps"
            + ("" if in_float32 else ", or --compute-dtype float32")
        )


def event_writer() -> Callable[..., Any]:
    """The class that writes TensorBoard's files.

    Raises:
        UserError: it is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError('--tensorboard needs its extra: pip install -e ".[tensorboard]"') from None
    return SummaryWriter
