"""The explorer in a real browser: its arithmetic beside JAX's, its tokenizer beside Python's, and what a user does."""

import dataclasses
import math
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from tinygpt_jax import library
from tinygpt_jax.activations import activations
from tinygpt_jax.config import Config, DataConfig, ModelConfig
from tinygpt_jax.data import grammar
from tinygpt_jax.exchange.tensors import assembled, parameter_shapes
from tinygpt_jax.explorer import write_explorer
from tinygpt_jax.explorer.weights import pack, rounded
from tinygpt_jax.generation.decoding import fit_window
from tinygpt_jax.model import GPT
from tinygpt_jax.tokenizer import compact, gpt2
from tinygpt_jax.training.checkpoint import Run

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the extra `browser`)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")

VARIANTS = {
    "post-LN, ReLU, sinusoidal": {
        "norm": "post",
        "activation": "relu",
        "positions": "sinusoidal",
        "tie_embeddings": False,
    },
    "pre-LN, GELU, learned": {"norm": "pre", "activation": "gelu", "positions": "learned", "tie_embeddings": False},
    "pre-LN, ReLU, rotary": {"norm": "pre", "activation": "relu", "positions": "rotary", "tie_embeddings": False},
    "post-LN, GELU, learned": {"norm": "post", "activation": "gelu", "positions": "learned"},
}
VOCABULARY = compact(np.isin(np.arange(50_257), np.arange(300, 344)))  # 301 tokens
READY = "#tokens[aria-busy=false]"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run():
    """Random weights, with a vocabulary of some built-in stories and a context in which none of them fits."""
    ids, _ = gpt2().encode_batch([story for story, _ in grammar.write_stories(60, 0)])
    tokenizer = compact(np.bincount(ids, minlength=50_257))
    shape = {"context_length": 32, "n_layers": 1, "n_heads": 2, "d_model": 16, "d_ff": 16, "dropout": 0.0}
    config = Config(ModelConfig(tokenizer.vocab_size, **shape), DataConfig("builtin", "compact"))
    return _run(config, tokenizer)


def _run(config, tokenizer, seed=0):
    """Parameters of such sizes that each matters, drawn without a compiler."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for name, shape in parameter_shapes(config.model).items():
        size = 0.1 if len(shape) == 1 else 0.5 if "_embedding" in name or "head" in name else 1.5 * shape[0] ** -0.5
        arrays[name] = generator.normal(name.endswith("scale"), size, shape).astype(np.float32)
    return Run(config, tokenizer, assembled(config.model, arrays), 0, GPT(config.model), None)


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    """The page, with two checkpoints, of which the second says something else."""
    other = dataclasses.replace(_run(run.config, run.tokenizer, seed=1), step=7)
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    write_explorer([run, other], {7: 6.5}, path)
    return path, other


@pytest.fixture(scope="module")
def opened(browser, file):
    """The page, for what does not change it."""
    page = browser.new_page()
    _open(page, file[0])
    yield page
    page.close()


@pytest.fixture(scope="module")
def used(browser, file):
    """The page of those who use it. In all that they do it may ask for nothing and have no complaint."""
    page = browser.new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    _open(page, file[0])
    yield page
    page.close()
    assert asked == [file[0].as_uri()]
    assert said == []


@pytest.fixture
def page(used):
    """As it was opened."""
    used.set_viewport_size({"width": 1000, "height": 800})
    used.evaluate("() => { explorer.stop(); explorer.story = new Story(); explorer.given = null; }")
    used.click("#write-tab")
    for name, value in {"prompt": "Once upon a time", "temperature": 0.8, "seed": 0, "most": 12, "given": ""}.items():
        used.evaluate("([name, value]) => { document.getElementById(name).value = value; }", [name, value])
    return used


def _open(page, path):
    page.goto(path.as_uri())
    page.wait_for_selector(READY, timeout=60_000)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, opened):
    """A small model of each kind, in Python with the page's rounded weights, and in the page as `tried`."""
    config = ModelConfig(
        VOCABULARY.vocab_size, context_length=12, n_layers=2, n_heads=2, d_model=16, d_ff=24, dropout=0.0
    )
    run = _run(Config(dataclasses.replace(config, **VARIANTS[request.param])), VOCABULARY)
    form = "int8" if "rotary" in request.param else "float16"
    described, text = pack(run, form)
    opened.evaluate(
        "async ([config, text, described]) => { globalThis.tried = new GPT(config, await unpack(text, described)); }",
        [dataclasses.asdict(run.config.model), text, described],
    )
    return dataclasses.replace(run, params=rounded(run, form))


look_inside = jax.jit(activations, static_argnums=0)
TOKENS = [300, 5, 17, 250, 5, 5, 99, 0, 123, 45, 6, 78]


def test_the_arithmetic_is_that_of_jax(variant, opened):
    """Logits; attention weights; the residual stream; and the lens, whose last layer are the logits."""
    found = opened.evaluate(
        """(tokens) => {
          const cache = tried.empty_cache(), layers = [...Array(tried.config.n_layers + 1).keys()];
          return {
            logits: tokens.map((token) => [...tried.decode(token, cache)]),
            weights: cache.layers.map(({ weights }) => weights.map((heads) => heads.map((row) => [...row]))),
            residual: cache.residual.map((stream) => [...stream]),
            lens: layers.map((layer) => [...tried.lens(layer, 7, cache)]),
          };
        }""",
        TOKENS,
    )
    params, config = variant.params, variant.config.model
    expected = look_inside(variant.model, params, jnp.array([TOKENS]))
    logits, residual = np.asarray(expected.logits[0]), np.asarray(expected.residual[:, 0])
    assert np.ptp(logits) > 3
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    for layer, rows in enumerate(found["weights"]):
        for query, heads in enumerate(rows):
            np.testing.assert_allclose(heads, expected.attention[layer, 0, :, query, : query + 1], atol=1e-4)
    np.testing.assert_allclose(np.reshape(found["residual"], residual.shape), residual, atol=1e-4)
    np.testing.assert_allclose(found["lens"][-1], logits[7], atol=1e-4)
    norm = params["final_norm"] if config.norm == "pre" else params["blocks_1"]["feed_forward_norm"]
    read = reference.layer_norm(residual[1, 7], norm["scale"], norm["bias"])
    head = params["token_embedding"] if config.tie_embeddings else params["head_weight"]
    np.testing.assert_allclose(found["lens"][1], np.asarray(head) @ read, atol=1e-4)


def test_greedy_text_is_that_of_jax_beyond_the_context(variant, opened):
    """Over three windows, after a prompt that does not fit. In JAX by the full forward pass of each window."""
    prompt, written = [300, *VOCABULARY.encode("A cat sat on the mat.")], []
    window, capacity = prompt[-12:], variant.config.model.context_length
    while len(written) < 25:
        window = fit_window(window, capacity)
        row = jnp.array([[*window, *[0] * (capacity - len(window))]])
        logits = look_inside(variant.model, variant.params, row).logits
        written.append(int(logits[0, len(window) - 1].argmax()))
        window = [*window, written[-1]]
    found = opened.evaluate(
        """(tokens) => {
          const reading = new Reading(tried, null, "writing");
          for (const _ of reading.read(tokens));
          while (reading.tokens.length < tokens.length + 25) {
            const logits = after_rules(reading.logits, { temperature: 0, top_k: 0, top_p: 1 });
            for (const _ of reading.append(categorical(0.5, logits)));
          }
          return reading.tokens.slice(tokens.length);
        }""",
        prompt,
    )
    assert found == written and len(set(found)) > 3


def random_strings():
    """300 of letters of many scripts, emoji, right-to-left and control characters, halves of surrogate pairs."""
    generator = random.Random(7)
    alphabets = [
        "abc XYZ 019 's 'll \n\t  ",
        "éüñçß мир 你好",
        "\u05e9\u05dc\u05d5\u05dd \u200f",  # Hebrew, and a mark of direction
        "\u0645\u0631\u062d\u0628\u0627\u0660",
        "\U0001f469\u200d\U0001f467\U0001f1eb\U0001f1f7\U0001f408",  # emoji, some of several characters
        "\x00\x1b\x7f\x85\xa0\ufeff\u2028\u3000",
        "<b>&amp;</script>",
        "\ud83d \udc08",
        "½²Ⅷ٣",
        "-_.,!?\"'",
    ]
    for _ in range(300):
        letters = "".join(generator.sample(alphabets, 3))
        text = "".join(generator.choices(letters, k=generator.randrange(1, 40)))
        yield text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # halves that meet are a pair
    yield from ["", "<|endoftext|>", " " * 50 + "x", "a" * 3000, "I'll've'S don't", "handkerchief's"]


def test_strings_are_tokenised_as_in_python(run, opened):
    """In both vocabularies, and back; a string goes there as numbers, because JSON has no half pairs."""
    strings = list(random_strings())
    units = [list(np.frombuffer(text.encode("utf-16-le", "surrogatepass"), np.uint16).tolist()) for text in strings]
    found = opened.evaluate(
        """(strings) => {
          const whole = new Tokenizer(explorer.facts.merges, null);
          return [whole, explorer.tokenizer].map((tokenizer) => strings.map((units) => {
            const ids = tokenizer.encode(units.map((unit) => String.fromCharCode(unit)).join(""));
            return { ids, text: tokenizer.decode(ids), each: tokenizer.decode_each(ids).join("") };
          }));
        }""",
        units,
    )
    for tokenizer, results in zip((gpt2(), run.tokenizer), found, strict=True):
        for text, result in zip(strings, results, strict=True):
            ids = tokenizer.encode(text)
            assert result["ids"] == ids, ascii(text)
            assert result["text"] == result["each"] == tokenizer.decode(ids)


def test_the_storyteller_gives_every_story_its_probability(opened):
    """The next token's probabilities multiply to the story's own, and each distribution adds up to 1."""
    stories = list(grammar.write_stories(4, 11))
    found = opened.evaluate(
        """(stories) => stories.map((story) => {
          const { tokenizer, storyteller } = explorer, tokens = [tokenizer.end_of_text, ...tokenizer.encode(story)];
          tokens.push(tokenizer.end_of_text);
          let nats = 0, worst = 0;
          for (let place = 1; place < tokens.length; place++) {
            const next = storyteller.next_token(tokens.slice(0, place), tokenizer);
            nats -= Math.log(next.get(tokens[place]));
            worst = Math.max(worst, Math.abs(1 - [...next.values()].reduce((sum, p) => sum + p, 0)));
          }
          return { nats, worst };
        })""",
        [story for story, _ in stories],
    )
    for (_, log_p), result in zip(stories, found, strict=True):
        assert result["nats"] == pytest.approx(-log_p, abs=1e-9)
        assert result["worst"] < 1e-12


def test_a_small_storyteller_by_hand(opened):
    """A [red|big] {toy} and the {toy}: toys ball, bat; "ba" begins both; the second mention is certain."""
    found = opened.evaluate(
        """() => {
          const told = new Storyteller("A [red|big|bad] {toy}. The {toy}.", { toy: "ball, bat, drum" });
          const tokenizer = new Tokenizer(explorer.facts.merges, null), next = (text) => {
            const tokens = [tokenizer.end_of_text, ...tokenizer.encode(text)];
            return [...told.next_token(tokens, tokenizer)].map(([token, p]) => [tokenizer.decode([token]), p]);
          };
          const deep = new Storyteller("A [un{w}|big] toy.", { w: "ripe, wise, well" });
          const after_a = deep.next_token([tokenizer.end_of_text, ...tokenizer.encode("A")], tokenizer);
          globalThis.big = after_a.get(tokenizer.encode(" big")[0]);
          return ["A", "A red", "A red ball. The", "A red ball. The ball.", "A red ball. The bat", "An"].map(next);
        }"""
    )
    first, toys, again, over, wrong, other = (dict(pairs) for pairs in found)
    assert first[" big"] == pytest.approx(1 / 3)
    assert sum(p for text, p in toys.items() if text[:2] == " b") == pytest.approx(2 / 3)
    assert max(again.values()) == 1 and over == {"": 1}
    assert wrong == other == {}
    assert opened.evaluate("big") == pytest.approx(1 / 2), "a choice of many words is no likelier than one of one"


def test_divergence_is_that_of_kullback_and_leibler(opened):
    found = opened.evaluate(
        "() => divergence(new Map([[0, 0.5], [2, 0.5]]), [0.5, 0.25, 0.25].map((p) => -Math.log(p)))"
    )
    assert found == pytest.approx(0.5 * math.log(0.5 / 0.25))


def test_rules_of_sampling(opened):
    """Top-k keeps ties, top-p the fewest that hold p, temperature divides."""
    rules = "([logits, rules]) => [...softmax(after_rules(Float32Array.from(logits), rules))]"
    logits = np.log([0.5, 0.2, 0.2, 0.1]).tolist()
    tries = {
        (1, 0, 1): [0.5, 0.2, 0.2, 0.1],
        (1, 2, 1): [0.5 / 0.9, 0.2 / 0.9, 0.2 / 0.9, 0],
        (1, 0, 0.4): [1, 0, 0, 0],
        (1, 0, 0.6): [0.5 / 0.9, 0.2 / 0.9, 0.2 / 0.9, 0],
        (0, 0, 1): [1, 0, 0, 0],
        (0.5, 0, 1): np.array([0.25, 0.04, 0.04, 0.01]) / 0.34,
    }
    for (temperature, top_k, top_p), expected in tries.items():
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        np.testing.assert_allclose(opened.evaluate(rules, [logits, settings]), expected, atol=1e-6)
    draws = opened.evaluate(
        """([logits, count]) => Array.from({ length: count }, (_, place) => categorical(uniform(3, place), logits))""",
        [logits, 4000],
    )
    np.testing.assert_allclose(np.bincount(draws) / 4000, np.exp(logits), atol=0.03)


def test_reading_measures_what_evaluate_measures(page, file):
    """The loss of each token, over several windows, is `Run.loss`."""
    _, other = file
    text = "Once upon a time, there was a cat named Åsa 🐈. " * 5
    page.click("#read-tab")
    page.fill("#given", text)
    page.click("#read")
    page.wait_for_selector(READY)
    nats = page.evaluate("explorer.reading.nats.slice(1)")
    seen = library.Run(**{**vars(other), "params": rounded(other, "float16")})
    np.testing.assert_allclose(nats, seen.loss(text).nats, atol=2e-4)
    bits = sum(nats) / math.log(2) / len(text.encode())
    assert f"{bits:.3f} bits per byte" in page.inner_text("#figures")


def test_write_step_branch_and_the_way_back(page):
    """A story depends on the prompt, the settings and the seed alone; a branch keeps what is before it."""
    page.fill("#most", "20")
    first = _write(page)
    assert first.startswith("Once upon a time") and _write(page) == first
    page.fill("#seed", "5")
    other = _write(page)
    assert other != first
    page.fill("#most", "17")
    shorter = _write(page)
    for _ in range(3):
        page.click("#step")
        page.wait_for_selector(READY)
    assert shorter != other and _text(page) == other, "step by step it is the same story"
    page.click("#token-9")
    assert page.inner_text("#inside-title").startswith("Token 9: ")
    choice = page.locator("#instead button").nth(3)
    chosen = choice.inner_text()
    choice.click()
    page.wait_for_selector("#version-list li:nth-child(2) [aria-current=true]")
    page.wait_for_selector(READY)
    tokens = page.evaluate("explorer.reading.tokenizer.decode_each(explorer.reading.tokens)")
    assert (
        f"“{tokens[9]}”" == chosen
        and tokens[:9] == page.evaluate("explorer.tokenizer.decode_each(explorer.story.versions[0].tokens)")[:9]
    )
    page.click("#version-list li:nth-child(1) button")
    page.wait_for_selector("#version-list li:nth-child(1) [aria-current=true]")
    page.wait_for_selector(READY)
    assert _text(page) == other


def _branch(page, place):
    """Put the fourth likeliest token in a place."""
    page.click(f"#token-{place}")
    page.locator("#instead button").nth(3).click()
    page.wait_for_selector(READY)


STORIES = "explorer.story.versions.map(({ tokens }) => explorer.tokenizer.decode(tokens))"


def test_quick_clicks_lose_nothing_of_a_version(page):
    """Guards against keeping, as a version, what was read of it when the next was clicked."""
    _write(page)
    _branch(page, 6)
    stories = page.evaluate(STORIES)
    page.evaluate(
        """() => { explorer.model.decode = function (...args) {
          for (const began = performance.now(); performance.now() - began < 20; );
          return GPT.prototype.decode.apply(this, args);
        }; }"""
    )
    page.evaluate(
        """async () => {
          for (const version of [0, 1, 0, 1]) {
            document.querySelectorAll("#version-list button")[version].click();
            await new Promise((done) => setTimeout(done, 60));
          }
          delete explorer.model.decode;
        }"""
    )
    page.wait_for_selector(READY)
    assert page.evaluate(STORIES) == stories and _text(page) == stories[1] != stories[0]


def test_what_was_made_outlives_the_slider_the_tabs_and_another_prompt(page):
    """Only what Write alone has made makes room, because it can be written again."""
    _write(page)
    _branch(page, 6)
    stories = page.evaluate(STORIES)
    page.click("#read-tab")
    page.fill("#given", "Once upon a time there was a cat")
    page.click("#read")
    page.wait_for_selector(READY)
    _slide(page, "ArrowLeft")
    page.click("#write-tab")
    page.wait_for_selector(READY)
    assert _text(page) == stories[1] and page.is_visible("#inside")
    page.click("#version-list li:nth-child(1) button")
    page.wait_for_selector(READY)
    assert _text(page) == stories[0]
    _slide(page, "ArrowRight")
    assert page.evaluate(STORIES)[:2] == stories and page.evaluate("explorer.story.number") == 2
    page.fill("#prompt", "One day")
    page.click("#step")
    page.wait_for_selector(READY)
    assert page.evaluate(STORIES)[:2] == stories and _text(page).startswith("One day")
    page.click("#read-tab")
    page.wait_for_selector(READY)
    _branch(page, 3)
    assert page.evaluate(STORIES)[:2] == stories
    assert "Once upon a time there was a cat" in page.evaluate(STORIES) and page.is_visible("#prompt")


def _slide(page, key):
    page.evaluate("document.getElementById('tokens').setAttribute('aria-busy', 'true')")
    page.focus("#checkpoint")
    page.keyboard.press(key)
    page.wait_for_selector(READY)


def _write(page):
    page.click("#write")
    page.wait_for_selector(READY)
    return _text(page)


def _text(page):
    return page.evaluate("explorer.tokenizer.decode(explorer.readings.write.tokens)")


def test_it_stops_and_answers_while_it_writes(page):
    """The page draws while thousands of tokens are written, and the button ends that."""
    page.fill("#most", "100000")
    page.fill("#temperature", "1000")
    # The page itself presses the button: from out here it would be pressed so late that the story may have ended.
    page.evaluate("""() => {
        globalThis.frames = 0;
        let stopped = false;
        const tick = () => {
            frames++;
            if (!stopped && document.querySelector("#token-300")) {
                stopped = true;
                document.querySelector("#write-panel .stop").click();
            }
            requestAnimationFrame(tick);
        };
        tick();
    }""")
    page.click("#write")
    page.wait_for_selector("#token-300", timeout=60_000)
    page.wait_for_selector(READY)
    stopped = page.evaluate("explorer.reading.tokens.length")
    assert page.evaluate("frames") > 3
    _write(page)  # the same story, to its own end
    assert 300 <= stopped < page.evaluate("explorer.reading.tokens.length")


def test_what_stories_and_prompts_say_is_shown_and_not_obeyed(page):
    evil = "<img src=x onerror=alert(1)></script><script>document.title='broken'</script><b>bold</b>"
    page.fill("#prompt", evil)
    page.fill("#most", "3")
    assert _write(page).startswith(evil)
    page.locator("#tokens span").nth(-3).hover()
    page.wait_for_selector("#hover:not([hidden]) button")
    assert evil in page.inner_text("#tokens")
    assert page.locator("#tokens img, #tokens b, #tokens script, #inside img").count() == 0
    assert "broken" not in page.title()


def test_keys_move_the_cursor_and_the_tabs(page):
    page.fill("#most", "12")
    _write(page)
    page.focus("#tokens")
    page.keyboard.press("Home")
    assert page.inner_text("#inside-title") == "Token 0: the beginning"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tokens", "aria-activedescendant") == "token-2"
    assert page.locator("[aria-selected=true]#token-2").count() == 1
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.closest('#instead') !== null")
    page.focus("#write-tab")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "read-tab" and page.is_visible("#given")


def test_everything_that_can_be_pressed_has_a_name(page):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, [role=listbox], [role=img]")]
          .filter((one) => !one.textContent.trim() && !one.getAttribute("aria-label") && !one.labels?.length)
          .map((one) => one.outerHTML)"""
    )
    assert nameless == []


def test_a_phone_shows_all_of_it(page):
    """Nothing is wider than the screen."""
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_slider_shows_the_same_prompt_at_each_checkpoint(page):
    page.fill("#most", "15")
    late = _write(page)
    assert "after 7 updates, validation loss 6.500" in page.inner_text("#checkpoint-said")
    _slide(page, "ArrowLeft")
    assert page.inner_text("#checkpoint-said") == "after 0 updates"
    early = _text(page)
    _slide(page, "ArrowRight")
    assert early.startswith("Once upon a time") and early != late and _text(page) == late


def test_the_storyteller_stands_beside_the_model(page):
    """On a story of its own; and it is said where a text is none."""
    [(story, log_p)] = grammar.write_stories(1, 3)
    page.click("#read-tab")
    page.fill("#given", story)
    page.click("#read")
    page.wait_for_selector("#figures:has-text('divergence')", timeout=60_000)
    tokens = len(page.evaluate("explorer.tokenizer.encode(explorer.tokenizer.decode(explorer.reading.tokens))"))
    assert f"own probabilities: {-log_p / tokens:.3f} nats per token" in page.inner_text("#figures")
    page.click("#token-12")
    page.wait_for_selector("#next .bar.true", state="attached")
    page.fill("#given", story.replace("named", "called"))
    page.click("#read")
    page.wait_for_selector("#figures:has-text('would never say this')", timeout=60_000)
    before = page.evaluate("(text) => explorer.tokenizer.encode(text).length", story[: story.index(" named")])
    assert page.locator("#tokens .never").all_inner_texts() == [" called"]
    assert page.locator("#tokens .never").get_attribute("id") == f"token-{before + 1}"
    known = page.evaluate("explorer.exact.nats")
    mean = sum(known) / (before + 1)
    said = f"from token {before + 1} on, which is marked), divergence from it {mean:.4f} nats per token over the"
    assert f"{said} {before + 1} tokens until then" in page.inner_text("#figures")


def test_the_storyteller_stops_where_it_has_nothing_to_say(page):
    """Guards against asking it at every further place, which froze the page on a long text."""
    page.evaluate(
        """() => { globalThis.asked = 0; explorer.storyteller.next_token = function (...args) {
          asked++;
          return Storyteller.prototype.next_token.apply(this, args);
        }; }"""
    )
    page.click("#read-tab")
    page.fill("#given", "Once upon a cat. " * 20)
    page.click("#read")
    page.wait_for_selector("#figures:has-text('would never say this')", timeout=60_000)
    page.evaluate("() => { delete explorer.storyteller.next_token; }")
    assert page.evaluate("asked") == page.evaluate("explorer.exact.never") < 6


def test_nothing_is_shown_of_a_token_that_the_model_does_not_see(page):
    page.fill("#prompt", "Once upon a time, there was a cat. " * 5)
    page.fill("#most", "3")
    _write(page)
    page.click("#token-1")
    assert "before what the model sees" in page.inner_text("#inside-title")
    assert not page.is_visible("#instead") and not page.is_visible("#next") and not page.is_visible("#heads")
    page.click("#tokens span:last-child")
    page.wait_for_selector("#panels:not([hidden]) #instead button")


def test_an_empty_text_leaves_no_cursor_behind(page):
    """Where nobody has moved it, it stands at what surprised most."""
    page.evaluate("() => { explorer.text.moved = false; }")
    page.click("#read-tab")
    for text in ("", "Once upon a time, there was a dog"):
        page.fill("#given", text)
        page.click("#read")
        page.wait_for_selector(READY)
    surprise = page.evaluate("argmax(explorer.reading.nats.map((nats) => nats ?? 0))")
    assert page.evaluate("explorer.text.cursor") == surprise > 0


def test_both_distributions_have_a_number_and_a_name(page):
    """Also in what is shown beside a token."""
    page.evaluate("() => { explorer.text.moved = false; }")
    _write(page)
    page.wait_for_selector("#figures:has-text('storyteller')")
    page.click("#token-1")
    truth, model = page.evaluate("[explorer.exact.truth[0].get(explorer.reading.tokens[1]), explorer.reading.nats[1]]")
    page.wait_for_selector("#instead .key.true")
    assert 0.01 < truth < 0.99
    row = page.locator("#instead tr.chosen .number").all_inner_texts()
    assert row == page.evaluate("(shares) => shares.map(percent)", [math.exp(-model), truth])
    page.hover("#token-1")
    page.wait_for_selector("#hover .key.true")
    assert page.locator("#next tr:first-child .number").count() == 3


def test_a_field_without_a_number_is_named(page):
    story = _write(page)
    page.fill("#seed", "")
    page.click("#write")
    assert page.inner_text("#settings-problem").startswith("Seed: ") and _text(page) == story
    page.fill("#seed", "3")
    page.click("#write")
    page.wait_for_selector(READY)
    assert not page.is_visible("#settings-problem")


def test_which_head_looks_most_at_what(page):
    """Beside the weights themselves; and nothing is said of so few tokens that every head looks at each."""
    page.fill("#most", "16")
    _write(page)
    page.wait_for_selector("#habits:has-text('itself')")
    rows = page.evaluate("() => explorer.heads.rows(0).slice(2).map((heads) => heads.map((row) => [...row]))")
    shares = [np.mean([heads[head][-2] for heads in rows]) for head in (0, 1)]
    best = int(np.argmax(shares))
    share = page.evaluate("percent", shares[best])
    assert f"on the previous token: 1.{best + 1} ({share}); on the token itself" in page.inner_text("#habits")
    page.fill("#prompt", "Once")
    page.fill("#most", "1")
    _write(page)
    page.wait_for_selector("#habits:has-text('10 tokens or more')")
    assert page.locator("#heads b").count() == 0


def test_what_is_beside_a_token_stays_on_the_screen(page):
    """Above it where there is no room below."""
    page.fill("#most", "25")
    _write(page)
    box = page.locator("#token-20").bounding_box()
    page.set_viewport_size({"width": 1000, "height": int(box["y"] + 40)})
    page.hover("#token-20")
    page.wait_for_selector("#hover:not([hidden])")
    beside = page.locator("#hover").bounding_box()
    assert beside["y"] >= 0 and beside["y"] + beside["height"] <= page.viewport_size["height"]


def test_line_ends_are_seen(page):
    page.click("#read-tab")
    page.fill("#given", "Once upon\na time")
    page.click("#read")
    page.wait_for_selector(READY)
    ends = page.locator("#tokens .return")
    assert ends.count() == 1
    assert ends.evaluate("(one) => getComputedStyle(one, '::before').content") == '"↵"'


def test_a_finger_is_shown_the_alternatives_and_the_way(browser, file):
    page = browser.new_page(viewport={"width": 375, "height": 700}, has_touch=True)
    _open(page, file[0])
    page.tap("#token-2")
    page.tap("#hover button:has-text('Look inside')")
    assert page.locator("#inside-title").bounding_box()["y"] < 60
    assert page.inner_text("#inside-title").startswith("Token 2") and not page.is_visible("#hover")
    page.close()


@pytest.mark.parametrize("harm", ["half", "weights", "script"])
def test_a_damaged_file_says_that_it_is(browser, file, tmp_path, harm):
    """Guards against the browser's own words, and against "Opening the model" for ever."""
    text = file[0].read_text(encoding="utf-8")
    if harm == "half":
        text = text[: len(text) // 2]
    elif harm == "weights":
        at = text.index('id="weights-1"') + 2000
        text = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    else:
        text = text.replace("class Explorer", "class Explored", 1)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("text=This file is damaged or incomplete")
    assert "Opening" not in page.inner_text("body") and "went wrong" not in page.inner_text("body")
    page.close()
