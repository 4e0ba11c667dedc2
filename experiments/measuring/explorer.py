"""How large, fast and exact a run's explorer is: python -m experiments.measuring.explorer --workdir runs/

It needs Chromium on the PATH, and playwright to drive it (pip install playwright).
"""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import cli
from tinygpt_jax.devices import use_device
from tinygpt_jax.errors import UserError

if TYPE_CHECKING:
    from tinygpt_jax.training.checkpoint import Run

FORMS = ("float16", "int8")
DECODE = """(tokens) => {
  const cache = explorer.model.empty_cache(), began = performance.now();
  const logits = tokens.map((token) => explorer.model.decode(token, cache));
  const seconds = (performance.now() - began) / 1000;
  return { logits: logits.map((row) => [...row]), speed: tokens.length / seconds };
}"""


@dataclass(frozen=True)
class Arguments:
    """Measure the explorer of a run: its size, its speed in headless Chromium, and what rounding its weights costs."""

    workdir: Path = Path("runs")  # folder of the run
    stories: int = 100  # held-out stories to measure the loss on


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, measure and print."""
    arguments = cli.parse(Arguments, argv)
    use_device("cpu")

    from tinygpt_jax.explorer import write_explorer
    from tinygpt_jax.explorer.weights import rounded
    from tinygpt_jax.training.checkpoint import open_run

    run = open_run(arguments.workdir)
    tokens, bits = _held_out(run, arguments.stories)
    exact = np.asarray(run.model.apply({"params": run.params}, tokens[None])[0])
    print(f"bits per byte with float32 weights: {bits(run.params):.4f}, on {arguments.stories} held-out stories")
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            path = Path(folder) / f"{form}.html"
            size = write_explorer([run], {}, path, form)
            found = _in_browser(path, tokens)
            near = rounded(run, form)
            same = np.asarray(run.model.apply({"params": near}, tokens[None])[0])
            logits = np.array(found["logits"])
            print(
                f"{form}: {size / 1e6:.2f} MB, opens in {found['opens']:.1f} s; writes {found['writes']:,.0f} tokens/s "
                f"on the page, the model alone {found['speed']:,.0f}; "
                f"logits differ by {np.abs(logits - same).max():.1e} at most from JAX with these weights, "
                f"by {np.abs(logits - exact).max():.1e} from float32 ones; "
                f"the same first guess at {np.mean(logits.argmax(-1) == exact.argmax(-1)):.1%} of the places; "
                f"{bits(near) - bits(run.params):+.5f} bits per byte"
            )


def _held_out(run: "Run", stories: int) -> tuple[np.ndarray, Any]:
    """A context of held-out tokens, and a function from parameters to bits per byte on some stories."""
    from tinygpt_jax.data.corpus import prepare
    from tinygpt_jax.evaluation import evaluate, token_bytes, whole_stories

    split, end = prepare(run.config.data, tokenizer=run.tokenizer).validation, run.tokenizer.end_of_text
    offsets = split.offsets[: stories + 1]
    some = dataclasses.replace(split, tokens=split.tokens[: offsets[-1]], offsets=offsets)
    context = run.config.model.context_length

    def bits(params: Any) -> float:
        rows = whole_stories(some, context, 16, end)
        return evaluate(run.model, params, rows, token_bytes(run.tokenizer)).bits_per_byte or 0.0

    return np.array([end, *some.tokens[: context - 1]], np.int32), bits


def _in_browser(path: Path, tokens: np.ndarray) -> dict[str, Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("playwright is missing: pip install playwright") from None
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise UserError("there is no Chromium on the PATH: install the system's package chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, began = browser.new_page(), time.monotonic()
        page.goto(path.absolute().as_uri())
        page.wait_for_selector("main:not([hidden])", timeout=120_000)
        opens = time.monotonic() - began
        page.wait_for_selector("#tokens[aria-busy=false]", timeout=120_000)
        page.click("#write")
        page.wait_for_selector("#tokens[aria-busy=false]", timeout=120_000)
        writes = page.evaluate("explorer.speed")
        found = [page.evaluate(DECODE, tokens.tolist()) for _ in range(3)][-1]
        browser.close()
    return found | {"opens": opens, "writes": writes}


if __name__ == "__main__":
    cli.run(main)
