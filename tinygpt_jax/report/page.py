"""A run as pictures and as one page, drawn from what its folder holds."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tinygpt_jax.config import Config
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import write_atomically
from tinygpt_jax.judging.figures import read_judgement, shown
from tinygpt_jax.report import html, plots
from tinygpt_jax.report.drawing import figures, percent
from tinygpt_jax.runs.record import MAX_LOSS, NOT_TRAINED, RunRecord, WrittenStory, read_record
from tinygpt_jax.terminal import harmless

_SAMPLES_PER_PROMPT = 6
_CORPUS_NAMES = {  # where those of corpus.json do not say it
    "validation_entropy": "exact entropy, all validation stories",
    "evaluated_entropy": "exact entropy, evaluated rows",
}
_CAPTIONS = {
    "loss": "Mean cross-entropy. Training: of the updates since the point before, with dropout if any. Validation: of "
    "held-out stories, without. A uniform guess costs ln V; the unigram entropy is the least that is possible without "
    "looking at the context; the exact entropy, known for the built-in stories, the least that is possible at all, "
    "both for the validation rows that are evaluated. On the right without the first tenth of the steps.",
    "perplexity": "exp(loss): the model is as uncertain as a fair choice among so many tokens.",
    "learning_rate": "Above: the schedule. Below: the global norm of the gradient before clipping, on a log scale.",
    "word_cloud": "Frequent words of the training stories, without those that all English is full of.",
    "story_lengths": "Training stories by their length in tokens, end-of-text included.",
}


def write_report(workdir: Path) -> Path:
    """Draw `plots/*.png` and `report.html` in a run folder, and return the page's path.

    A run under way or with damaged files is drawn as far as it goes; the page and standard error say what is missing.

    Raises:
        UserError: `workdir` is not a run folder, or cannot be written to.
    """
    record = read_record(workdir)
    pictures = list(_draw_pictures(record, workdir / "plots"))  # these two may find more problems
    judged = list(_judgement(record, workdir))
    parts = [
        html.cards(_headline(record)),
        html.notes(record.problems),
        *pictures,
        *_stories(record.samples),
        *judged,
        html.heading("Stories, progress and speed"),
        html.tables(
            (caption, list(rows(record)))
            for caption, rows in (("Stories", _corpus_rows), ("Progress", _progress_rows), ("Speed", _speed_rows))
        ),
        *_configuration(record.config),
    ]
    for problem in record.problems:
        print(f"warning: {harmless(problem)}", file=sys.stderr)
    path = workdir / "report.html"
    write_atomically(path, html.page(record.name, _subtitle(record), parts))
    return path


def _draw_pictures(record: RunRecord, folder: Path) -> Iterator[str]:
    """Draw what there is data for, as parts of the page; what there is none for becomes a problem."""
    losses = record.curves["loss"], record.curves["validation_loss"]
    rates = record.curves["learning_rate"], record.curves["gradient_norm"]
    clip_norm = record.config.optimizer.clip_norm if record.config else None
    lengths = record.length_histogram or {}, int(record.number("context_length") or 0)
    layout = "packed" if record.corpus.get("layout") == "packed" else "padded"
    # Each with the data that it cannot do without.
    pictures: dict[str, tuple[Any, Callable[[Path], str]]] = {
        "loss": (any(losses), partial(plots.loss_curves, *losses, _references(record))),
        "perplexity": (any(losses), partial(plots.perplexity_curves, *losses, _references(record))),
        "learning_rate": (all(rates), partial(plots.learning_rate_curves, *rates, clip_norm)),
        "word_cloud": (record.words, partial(plots.word_cloud, record.words)),
        "story_lengths": (all(lengths), partial(plots.story_lengths, *lengths, layout=layout)),
    }
    missing = [f"{name}.png" for name, (data, _) in pictures.items() if not data]
    if missing and record.problems != [NOT_TRAINED]:
        record.problems.append(f"not drawn, for lack of data: {', '.join(missing)}")
    yield html.heading("Pictures")
    for name, (data, draw) in pictures.items():
        path = folder / f"{name}.png"
        if data:
            title = draw(path)
            yield html.picture(path.read_bytes(), title, _CAPTIONS[name])


def _references(record: RunRecord) -> dict[str, float]:
    """Losses to compare with, in nats per token, as far as they are known, the best that is possible last."""
    vocab_size = record.number("vocab_size")
    known = {
        "uniform guess": math.log(vocab_size) if vocab_size else None,
        "unigram entropy": record.number("evaluated_unigram_entropy"),
        "exact entropy": record.number("evaluated_entropy"),
    }
    return {name: value for name, value in known.items() if value is not None and 0 < value <= MAX_LOSS}


def _headline(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """The run in a few figures: (name, figure, unit or remark)."""
    curves, references = record.curves, _references(record)
    if curves["validation_loss"]:
        step, loss = curves["validation_loss"][-1]
        best_step, best = min(curves["validation_loss"], key=lambda point: point[1])
        bits, bytes_per_token = loss / math.log(2), record.number("evaluated_bytes_per_token")
        yield "Validation loss", f"{loss:.3f}", f"nats per token, at step {step:,}"
        yield "Best validation loss", f"{best:.3f}", f"nats per token, at step {best_step:,}"
        if references:
            name, reference = list(references.items())[-1]
            side, distance = "Above" if loss >= reference else "Below", abs(loss - reference)
            share = f"{distance / reference:.1%} of {reference:.3f}"
            yield f"{side} the {name}", f"{distance:.3f}", f"nats per token, {share}"
        yield "Perplexity", figures(math.exp(loss)), "exp(validation loss)"
        per_byte = f"{bits / bytes_per_token:.3f} bits per byte" if bytes_per_token else "validation loss / ln 2"
        yield "Bits per token", f"{bits:.3f}", per_byte
    if curves["validation_accuracy"]:
        accuracy = percent(curves["validation_accuracy"][-1][1])
        yield "Token accuracy", accuracy, "of validation tokens were the first guess"
    if curves["loss"]:
        step, loss = curves["loss"][-1]
        yield "Training loss", f"{loss:.3f}", f"nats per token, at step {step:,}"
    if curves["tokens_per_second"]:
        speed = median(value for _, value in curves["tokens_per_second"])
        yield "Throughput", f"{speed:,.0f}", "tokens per second (median)"


def _stories(samples: list[WrittenStory]) -> Iterator[str]:
    """What the model wrote from each prompt, from the first to the last evaluation."""
    explanation = f"Up to {_SAMPLES_PER_PROMPT} per prompt, evenly spaced from first to last; samples.jsonl has all."
    if samples:
        yield html.heading("Stories while it learned", explanation)
    for prompt in dict.fromkeys(sample.prompt for sample in samples):
        written = [sample for sample in samples if sample.prompt == prompt]
        shown = min(_SAMPLES_PER_PROMPT, len(written))
        indices = [round(i * (len(written) - 1) / max(shown - 1, 1)) for i in range(shown)]
        yield html.stories(prompt, ((f"step {written[i].step:,}", written[i].text) for i in indices))


def _judgement(record: RunRecord, workdir: Path) -> Iterator[str]:
    """What `experiments.evaluate --stories` has found, where it was called."""
    try:
        judgement = read_judgement(workdir)
    except UserError as error:
        record.problems.append(str(error))
        return
    if judgement is not None:
        yield html.heading("Its stories judged", f"At step {judgement.step:,}: {judgement.about}.")
        for section in judgement.sections:
            rows = (
                [row.name, *(shown(row.cells.get(column), row.unit) for column in section.columns)]
                for row in section.rows
            )
            title = f"{section.name}: {section.about}"
            columns, meanings = ["", *section.columns, "what it means"], [row.means for row in section.rows]
            yield html.grid(title, columns, rows, meanings) + html.notes(section.notes)


def _corpus_rows(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    for name, value in record.corpus.items():
        text = value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        yield _CORPUS_NAMES.get(name, name.replace("_", " ")), text + " nats per token" * name.endswith("entropy"), ""


def _progress_rows(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    if (done := _steps_done(record)) is not None:
        yield "steps done", f"{done:,}", ""
    if record.curves["epoch"]:
        yield "epochs done", f"{record.curves['epoch'][-1][1]:.2f}", ""
    if record.config:
        training = record.config.training
        yield "planned", f"{training.steps:,} steps" if training.steps else f"{training.epochs:g} epochs", ""


def _speed_rows(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    speeds, shares, seconds = (
        sorted(value for _, value in record.curves[name]) for name in ("tokens_per_second", "share_of_peak", "seconds")
    )
    if speeds:
        tenth = len(speeds) // 10
        yield "tokens per second, median", f"{median(speeds):,.0f}", ""
        yield "tokens per second, middle 80%", f"{speeds[tenth]:,.0f} to {speeds[-1 - tenth]:,.0f}", ""
    if shares:
        yield "share of the device's peak, median", percent(median(shares)), ""
    if seconds:
        yield "time in updates, evaluation left out", f"{sum(seconds) / 60:,.1f} minutes", ""


def _configuration(config: Config | None) -> Iterator[str]:
    if config is not None:
        yield html.heading("Configuration", "Marked: what differs from the defaults, which are the reference system.")
        groups, defaults = dataclasses.asdict(config), dataclasses.asdict(Config())
        if config.training.steps:
            groups["training"]["epochs"] = defaults["training"]["epochs"] = "not used: steps is set"
        yield html.tables(
            (group.capitalize(), [_setting(name, value, defaults[group][name]) for name, value in values.items()])
            for group, values in groups.items()
            if group != "origin" or config.origin.init_from
        )


def _setting(name: str, value: Any, default: Any) -> tuple[str, str, str]:
    shown, usual = ("not set" if x is None else str(x) for x in (value, default))
    return name, shown, "" if value == default or name == "vocab_size" else f"default {usual}"  # which the stories set


def _subtitle(record: RunRecord) -> str:
    facts = []
    if record.config:
        model = record.config.model
        facts += [f"{model.n_layers} layers of width {model.d_model}", f"{model.vocab_size:,} tokens"]
        facts += [f"stories: {record.config.data.source}"]
    done = _steps_done(record)
    return ", ".join([*facts, "no step logged yet" if done is None else f"{done:,} steps"])


def _steps_done(record: RunRecord) -> float | None:
    curves = record.curves["loss"], record.curves["validation_loss"]
    return max((curve[-1][0] for curve in curves if curve), default=None)
