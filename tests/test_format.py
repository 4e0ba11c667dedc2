"""The stored checkpoint of format 1: a program that can no longer read what users have is noticed.

`fixtures/format_1` is a run of 500 steps: 1 layer, d_model 16, built-in stories, `--vocabulary compact --max-vocab 60`,
cosine schedule. If a test here fails, either keep reading the format, or raise FORMAT_VERSION, refuse what is older
with the reason, and add a fixture of the new format.
"""

import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest

from tinygpt_jax.generation import Sampling, generate
from tinygpt_jax.training.checkpoint import newest_intact, open_run, restore_state
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.sharding import make_mesh

RUN = Path(__file__).parent / "fixtures" / "format_1"
VOCABULARY = "2171b703e2e0c5d3ebcea488bbb91c11634269e1dd38bb802641546b01fe9356"
PARAMETERS = "3d1cb8bc69883ae11ad91187d406bb751cf5b60db297e7a68a76e813d2fc1672"
OPTIMIZER_STATE = "04bbe932b166ccbfb2b49685bf4c7e2b699ec36bc548cb915a7c880518293bc4"


def checksum(tree):
    """Of every number, each array with its path in the tree."""
    sha256 = hashlib.sha256()
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        sha256.update(jax.tree_util.keystr(path).encode() + np.asarray(array).tobytes())
    return sha256.hexdigest()


def test_its_checkpoint_is_intact_and_says_what_it_said():
    saved = newest_intact(RUN)
    assert saved is not None and saved.step == 500
    config, progress, tokenizer = saved.config(), saved.progress(), saved.tokenizer()
    assert (config.model.d_model, config.optimizer.schedule, config.training.steps) == (16, "cosine", 500)
    assert progress.validation_loss == 1.080124020576477 and len(progress.unlogged) == 3
    assert progress.files["metrics.jsonl"].size == 11912
    assert tokenizer.vocab_size == config.model.vocab_size == 313
    assert tokenizer.fingerprint == VOCABULARY


def test_its_parameters_and_optimizer_state_come_back_to_the_bit():
    saved = newest_intact(RUN)
    assert saved is not None
    state = restore_state(saved, make_optimizer(saved.config().optimizer, 500), make_mesh())
    assert int(state.step) == 500
    assert checksum(state.params) == PARAMETERS
    assert checksum(state.opt_state) == OPTIMIZER_STATE


def test_its_model_still_says_the_same():
    """Parameters that come back, and mean something else in the model that reads them."""
    run = open_run(RUN)
    tokens = run.tokenizer.encode("Once upon a time, a girl had a red ball.")
    logits = run.model.apply({"params": run.params}, jax.numpy.array([tokens[:-1]]))
    loss = -jax.nn.log_softmax(logits)[0, np.arange(len(tokens) - 1), np.array(tokens[1:])].mean()
    assert float(loss) == pytest.approx(3.69836, rel=1e-4)
    greedy = generate(
        run.model, run.params, run.tokenizer, ["Once upon"], Sampling(temperature=0.0), max_new_tokens=12, seed=0
    )
    assert greedy[0].text == " a se, a cend little"
