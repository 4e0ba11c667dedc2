"""From the metrics of updates to lines in a run's files and a progress bar."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tinygpt_jax.config import Config, ModelConfig
from tinygpt_jax.devices import peak_flops, resolve_dtype
from tinygpt_jax.errors import UserError
from tinygpt_jax.runs.folder import RunFiles
from tinygpt_jax.training.step import StepMetrics


class NonFiniteError(UserError):
    """An update had a loss or a gradient that is not finite."""


class TrainingLog:
    """Collects each update's metrics while they are still on the device, and writes a line every `log_every` steps."""

    def __init__(
        self,
        config: Config,
        files: RunFiles,
        display: "Display",
        schedule: Callable[[int], Any],
        steps_per_epoch: float,
        unlogged: tuple[tuple[float, float], ...],
    ) -> None:
        """Continue after the updates whose (loss, gradient norm) a checkpoint kept in `unlogged`."""
        self._config, self._files, self._display = config, files, display
        self._schedule, self._steps_per_epoch = schedule, steps_per_epoch
        self._waiting: list[tuple[int, StepMetrics]] = []
        self._read = list(unlogged)
        self._last_loss = unlogged[-1][0] if unlogged else None
        self._board = _tensorboard(files.workdir) if config.training.tensorboard else None

    @property
    def unlogged(self) -> tuple[tuple[float, float], ...]:
        """(loss, gradient norm) of the updates read since the last line."""
        return tuple(self._read)

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
            self._read.append((loss, norm))
            self._last_loss = loss
            if self._ends_line(step):
                self._write_line(step)

    def _ends_line(self, step: int) -> bool:
        return step in (1, self._display.total) or step % self._config.training.log_every == 0

    def _write_line(self, step: int) -> None:
        training = self._config.training
        losses = [loss for loss, _ in self._read]
        line = {
            "step": step,
            "epoch": step / self._steps_per_epoch,
            "tokens": step * training.batch_size * self._config.model.context_length,
            "loss": math.fsum(losses) / len(losses),
            "learning_rate": float(self._schedule(step - 1)),
            "gradient_norm": self._read[-1][1],
        }
        self._read.clear()
        self._files.write("metrics.jsonl", line)
        self.board(line)
        self._files.write("timings.jsonl", self._display.update(step, line["loss"]))

    def board(self, line: dict[str, Any]) -> None:
        """Send a line of metrics to TensorBoard too, if the run wants it."""
        if self._board is not None:
            for name, value in line.items():
                self._board.add_scalar(name, value, line["step"])

    def _what_to_try(self, step: int, loss: float, norm: float) -> str:
        what = f"the loss was {loss}" if not math.isfinite(loss) else f"the gradient norm was {norm}"
        last = "none" if self._last_loss is None else f"{self._last_loss:.4f}"
        rate = float(self._schedule(step - 1))
        in_float32 = resolve_dtype(self._config.training.compute_dtype) == "float32"
        return (
            f"step {step}: {what} at learning rate {rate:.3g} (last finite loss: {last}); the state before it is "
            f"saved. Try in a new --workdir: --learning-rate {rate / 3:.1g}, or a longer --warmup-steps"
            + ("" if in_float32 else ", or --compute-dtype float32")
        )


class Display:
    """A progress bar on a terminal, plain lines elsewhere: loss, tokens/s, share of the device's peak, time left."""

    def __init__(self, config: Config, start: int, total: int) -> None:
        """Show updates `start` to `total`."""
        self._tokens_per_step = config.training.batch_size * config.model.context_length
        self._flops_per_step = self._tokens_per_step * flops_per_token(config.model)
        self._peak = peak_flops()
        self.total = total
        self._start = start
        self._last = (start, time.monotonic())
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, file=sys.stderr)

    def update(self, step: int, loss: float) -> dict[str, float]:
        """Show the state after update `step`; returns what `timings.jsonl` gets."""
        now = time.monotonic()
        steps, seconds = step - self._last[0], max(now - self._last[1], 1e-9)
        self._last = (step, now)
        seconds_per_step = seconds / max(steps, 1)
        tokens_per_second = self._tokens_per_step / seconds_per_step
        timing = {"step": step, "seconds": seconds, "tokens_per_second": tokens_per_second}
        text = f"loss {loss:.4f}, {tokens_per_second:,.0f} tokens/s"
        if self._peak:
            timing["share_of_peak"] = self._flops_per_step / seconds_per_step / self._peak
            text += f", {timing['share_of_peak']:.0%} of peak"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            # The first update was compiled: its time says nothing of those to come.
            left = _duration((self.total - step) * seconds_per_step) if step > self._start + 1 else "unknown time"
            print(f"step {step:,}/{self.total:,}: {text}, {left} left", file=sys.stderr, flush=True)
        return timing

    def note(self, text: str) -> None:
        """Print a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def forget_time(self) -> None:
        """Start the clock again: what just happened was no training."""
        self._last = (self._last[0], time.monotonic())

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def flops_per_token(config: ModelConfig) -> int:
    """Arithmetic of one training step per token: 6 per matrix parameter, and attention's scores and mixing, 12 L d T.

    Source: Chowdhery et al. 2022 (PaLM), appendix B. Reading the embedding is no arithmetic; the head is.
    """
    per_layer = 4 * config.d_model**2 + 2 * config.d_model * config.d_ff
    matrices = config.n_layers * per_layer + config.vocab_size * config.d_model
    return 6 * matrices + 12 * config.n_layers * config.d_model * config.context_length


def _tensorboard(workdir: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs its extra: pip install 'tinygpt_jax[tensorboard]'") from None
    return SummaryWriter(str(workdir / "tensorboard"))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
