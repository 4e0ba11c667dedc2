"""The pictures: their titles state the facts, nothing is cut off or overlaps, and the same data give the same bytes."""

import math
import os
import subprocess
import sys
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tinygpt_jax import functional as F
from tinygpt_jax.report import drawing, inside, plots
from tinygpt_jax.runs.corpus_summary import length_histogram

FALLING = [(step, 1.4 + 9.4 / (1 + step / 30)) for step in range(1, 1001, 20)]
VALIDATION = FALLING[9::10]
REFERENCES = {"uniform guess": math.log(50_257), "unigram entropy": 5.96, "exact entropy": 0.7}
NORMS = [(step, 0.1 + 3 / step) for step, _ in FALLING]
WORDS = {"the": 900, "Lily": 300, "ball": 200, "Tim": 150, "and": 800, "dog": 100}
LONG = length_histogram(np.arange(60, 400), 128)
TWICE = {
    "cross-entropy": [(step, math.exp(loss)) for step, loss in FALLING],
    "softmax applied twice": [(step, 50_000.0 - step) for step, _ in FALLING],
}
TOKENS = ["start", " a", "$\\frac", "\n", " dog_^", " $1"]  # nothing of which is a formula


def weights_on(*keys):
    """Of each of six queries 0.6 on a key and the rest on itself."""
    weights = np.diag([0.4] * 6)
    weights[range(6), keys] += 0.6
    return weights


HEADS = {"head 1": weights_on(0, 1, 2, 3, 4, 5), "head 2": weights_on(0, 0, 0, 0, 1, 5)}

PICTURES = {
    "positions": partial(inside.position_encodings, np.asarray(F.sinusoidal_encoding(120, 64))),
    "scores and weights": partial(inside.attention_step, TOKENS, np.arange(36.0).reshape(6, 6) - 20, HEADS["head 2"]),
    "heads": partial(inside.attention_heads, TOKENS, HEADS),
    "one head": partial(inside.attention_heads, ["a", "b", "c"], {"head": np.eye(3)}),
    "loss": partial(plots.loss_curves, FALLING, VALIDATION, REFERENCES),
    "loss without context": partial(plots.loss_curves, FALLING, VALIDATION, {"unigram entropy": 5.96}),
    "loss of one step": partial(plots.loss_curves, FALLING[:1], [], {}),
    "perplexity": partial(plots.perplexity_curves, FALLING, VALIDATION, REFERENCES),
    "learning rate": partial(plots.learning_rate_curves, [(s, 1e-5 * s) for s, _ in FALLING], NORMS, 1.0),
    "learning rate without clipping": partial(plots.learning_rate_curves, [(1, 0.0)], [(1, 2.0)], None),
    "comparison": partial(plots.comparison_curves, TWICE, 18_489, 50_257),
    "lengths": partial(plots.story_lengths, LONG, 128),
    "lengths packed": partial(plots.story_lengths, LONG, 128, layout="packed"),
    "lengths in a long context": partial(plots.story_lengths, LONG, 4096),
    "ranks": partial(plots.token_ranks, np.array([0, 5, 1000, 70, 1, 0])),
    "words": partial(plots.word_cloud, WORDS),
    "words of one kind": partial(plots.word_cloud, {"the": 3}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_whole_and_the_same_each_time(tmp_path, name):
    """Guards against titles and labels that run out of the picture, blank pictures, and unseeded layouts."""
    title = PICTURES[name](tmp_path / "a.png")
    assert PICTURES[name](tmp_path / "b.png") == title
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert pixels.shape == (675, 1200)
    assert pixels.std() > 5
    if not name.startswith("words"):
        for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
            assert edge.min() == 255


def title_of(picture, tmp_path, *arguments, **options):
    return picture(*arguments, tmp_path / "picture.png", **options)


def test_titles_state_the_facts(tmp_path):
    curve = [(1, math.log(900)), (2, 0.75)]
    assert title_of(plots.loss_curves, tmp_path, curve, [(2, 0.8)], {"unigram entropy": 5.0, "exact entropy": 0.7}) == (
        "Validation loss ends at 0.800 nats per token, 0.100 above the exact entropy"
    )
    assert title_of(plots.loss_curves, tmp_path, curve, [], {"unigram entropy": 5.0}) == (
        "Training loss ends at 0.750 nats per token, 4.25 below the unigram entropy"
    )
    assert title_of(plots.perplexity_curves, tmp_path, curve, [], {}) == (
        "Training perplexity ends at 2.12; the run began at 900"
    )
    rates, norms = [(1, 1e-4), (2, 1e-3), (3, 2e-5)], [(1, 3.0), (2, 1.0), (3, 0.5), (4, 0.5)]
    assert title_of(plots.learning_rate_curves, tmp_path, rates, norms, 1.0) == (
        "Learning rate at most 0.001, 0.00002 at the end. Gradient clipped in 25% of the logged steps"
    )
    assert title_of(plots.token_ranks, tmp_path, np.arange(201)) == (
        "The 100 most frequent of 200 tokens make up 75% of the text"
    )


def test_titles_of_the_inside_state_the_facts(tmp_path):
    """The strongest look back: not at the token itself, and not at the first, where a head rests."""
    assert title_of(inside.attention_heads, tmp_path, TOKENS, HEADS) == "head 2: “dog_^” looks back at “a” with 60%"
    assert title_of(inside.attention_step, tmp_path, TOKENS, np.eye(6), HEADS["head 1"]) == (
        "Of 36 scores the mask leaves 21; each row of weights adds up to 1"
    )
    assert title_of(inside.position_encodings, tmp_path, np.zeros((9, 4))) == (
        "9 positions, each with a pattern of its own in 4 features"
    )


def test_what_is_masked_is_blank_and_a_row_is_a_query(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    scores = np.arange(36.0).reshape(6, 6) - 20
    inside.attention_step(TOKENS, scores, HEADS["head 2"], tmp_path / "step.png")
    left, right = (axes.images[0] for axes in figures[0].axes[:2])
    np.testing.assert_array_equal(left.get_array(), scores)
    assert left.get_clim() == (-20, 20)  # 0 is white
    np.testing.assert_array_equal(np.ma.getmaskarray(right.get_array()), ~np.tri(6, dtype=bool))
    np.testing.assert_allclose(right.get_array().filled(0), HEADS["head 2"])
    shown = [[label.get_text() for label in axes.get_yticklabels()] for axes in figures[0].axes[:2]]
    assert shown == [["start", "a", "$\\frac", "\\n", "dog_^", "$1"], [""] * 6]
    assert [label.get_text() for label in figures[0].axes[1].get_xticklabels()] == shown[0]


@pytest.mark.parametrize("context_length", [1, 60, 127, 128, 129, 300, 2000])
def test_a_histogram_tells_exactly_how_many_stories_are_cut(context_length):
    """Guards against a bin that holds stories from both sides of the cut: its share would be a guess."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        lengths = generator.integers(1, 2 + int(400 * generator.random()), size=generator.integers(1, 2000))
        lengths[0] = generator.choice([lengths[0], 50_000])
        histogram = length_histogram(lengths, context_length)
        edges, counts = np.array(histogram["edges"]), np.array(histogram["counts"])
        assert len(edges) == len(counts) + 1 and counts.sum() == len(lengths)
        assert len(counts) <= 60
        assert counts[edges[:-1] > context_length].sum() == (lengths > context_length).sum()


def test_one_very_long_story_does_not_hide_the_others():
    lengths = np.append(np.random.default_rng(0).integers(60, 120, 5000), 50_000)
    histogram = length_histogram(lengths, 128)
    assert histogram["edges"][-1] == 50_001 and histogram["counts"][-1] == 1
    assert len(histogram["counts"]) > 30


def test_the_share_cut_is_in_the_title(tmp_path):
    histogram = length_histogram(np.array([100] * 3 + [128] * 4 + [129] * 3), 128)
    assert title_of(plots.story_lengths, tmp_path, histogram, 128) == "30% of the stories are cut at 128 tokens"
    packed = plots.story_lengths(histogram, 128, tmp_path / "packed.png", layout="packed")
    assert packed == "30% of the stories are longer than a row of 128; packed, none is cut"
    assert title_of(plots.story_lengths, tmp_path, histogram, 129) == "Every story fits into the context of 129 tokens"


def test_the_cloud_leaves_out_what_all_english_is_full_of(tmp_path):
    assert title_of(plots.word_cloud, tmp_path, WORDS) == "The words that stand out: Lily, ball, Tim, dog"


@pytest.mark.parametrize("picture", [plots.loss_curves, plots.perplexity_curves])
@pytest.mark.parametrize("entropy", [1.3, 0.51])
def test_the_end_of_a_run_is_not_flat_and_no_text_hides_another(monkeypatch, tmp_path, picture, entropy):
    """A loss falls from 7 to 1 in the first tenth: what it does then fills a panel of its own."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    falling = [(s, entropy + 0.02 + 6 * math.exp(-s / 60) + 0.2 * math.exp(-s / 600)) for s in range(1, 2201, 20)]
    references = {"uniform guess": math.log(1122), "unigram entropy": 5.44, "exact entropy": entropy}
    picture(falling, falling[27::27], references, tmp_path / "run.png")
    (figure,) = figures
    figure.draw_without_rendering()
    whole, late = figure.axes
    lines = [line.get_ydata() for line in late.lines if len(line.get_ydata()) > 2]
    share = np.ptp(np.concatenate(lines)) / np.ptp(late.get_ylim())
    assert share > 0.6 and late.get_xlim()[0] > 200 and whole.get_xlim()[0] < 20
    texts = [*whole.texts, *late.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    names = [text.get_text().split()[0] for text in texts]
    assert names == ["uniform", "unigram", "exact", "exact", "training", "validation"]
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert not any(legend.get_window_extent().overlaps(axes.bbox) for legend in figure.legends for axes in figure.axes)
    assert all(axes.bbox.y0 <= text.get_window_extent().y0 for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1e-9, "0.1%"), (0.034, "3.4%"), (0.62, "62%"), (0.9999, "99.9%"), (1, "100%")]
)
def test_nearly_none_and_nearly_all_are_not_none_and_all(share, text):
    assert drawing.percent(share) == text


@pytest.mark.parametrize("backend", ["svg", "nonsense"])
def test_drawing_costs_nothing_until_used_and_leaves_pyplot_alone(tmp_path, backend):
    """Guards a fast --help, and a user's own pyplot figures and backend; one that is not there is not needed."""
    code = (
        "import sys, tinygpt_jax.report, tinygpt_jax.report.plots as plots; from pathlib import Path\n"
        "assert not {'matplotlib', 'wordcloud', 'jax'} & set(sys.modules), 'imported too early'\n"
        f"plots.word_cloud({{'ball': 2}}, Path({str(tmp_path)!r}) / 'words.png')\n"
        f"plots.loss_curves([(1, 2.0)], [], {{}}, Path({str(tmp_path)!r}) / 'loss.png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "import matplotlib, os\n"
        f"assert os.environ['MPLBACKEND'] == {backend!r}\n"
        "assert matplotlib.get_backend().lower() == ('svg' if os.environ['MPLBACKEND'] == 'svg' else 'agg')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MPLBACKEND": backend})
