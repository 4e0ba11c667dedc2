import dataclasses
import json
import shutil
import threading
import time
from contextlib import nullcontext

import jax
import numpy as np
import pytest

from tinygpt_jax import tokenizer
from tinygpt_jax.config import Config, ModelConfig, OptimizerConfig, TrainingConfig
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import own_checksum
from tinygpt_jax.model import GPT
from tinygpt_jax.runs.checkpoint_files import (
    Checkpoint,
    FormatError,
    Progress,
    checkpoints,
    saved_config,
    write_manifest,
)
from tinygpt_jax.runs.folder import check_folder, check_history, mark_of
from tinygpt_jax.training import checkpoint
from tinygpt_jax.training.checkpoint import newest_intact, open_run, restore_state, save
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.sharding import make_mesh
from tinygpt_jax.training.step import initial_state
from tinygpt_jax.training.thinning import remove_old

CONFIG = Config(
    model=ModelConfig(context_length=8, n_layers=1, n_heads=2, d_model=8, d_ff=16, vocab_size=300),
    training=TrainingConfig(compute_dtype="float32"),
)
OPTIMIZER = make_optimizer(OptimizerConfig(), 10)


@pytest.fixture(scope="module")
def state():
    return initial_state(GPT(CONFIG.model), OPTIMIZER, 0, make_mesh())


@pytest.fixture(scope="module")
def words():
    counts = np.zeros(50_257, np.int64)
    counts[1000:1043] = 1
    return tokenizer.compact(counts, None)


def write(workdir, state, words, step, loss=None):
    return save(workdir, state._replace(step=step), Progress(step, "corpus", loss, ((2.5, 0.5),)), CONFIG, words)


def test_what_is_saved_comes_back(tmp_path, state, words):
    saved = write(tmp_path, state, words, 7, loss=1.25)
    assert saved.problem() is None
    assert (saved.step, saved.config()) == (7, CONFIG)
    assert saved.progress() == Progress(7, "corpus", 1.25, ((2.5, 0.5),))
    assert saved.tokenizer().fingerprint == words.fingerprint
    restored = restore_state(saved, OPTIMIZER, make_mesh())
    assert int(restored.step) == 7
    for a, b in zip(jax.tree.leaves(state._replace(step=7)), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)
    run = open_run(tmp_path)
    np.testing.assert_array_equal(run.params["token_embedding"], state.params["token_embedding"])


def test_the_newest_two_and_the_best_are_kept(tmp_path, state, words):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)):
        write(tmp_path, state, words, step, loss)
    assert [c.step for c in checkpoints(tmp_path)] == [2, 4, 5]
    assert open_run(tmp_path, "best").step == 2
    assert open_run(tmp_path, "last").step == 5


def every_file(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_damage_to_any_file_is_found(tmp_path, state, words):
    """One flipped bit, a cut, a missing file: in each file of a checkpoint."""
    saved = write(tmp_path, state, words, 1)
    rng = np.random.default_rng(0)
    for path in every_file(saved.folder):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        if flipped:
            flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
            path.write_bytes(flipped)
            if path.name != "manifest.json":  # see below
                assert f"{path.name} has changed since it was written: its checksum is another" in saved.problem()
            path.write_bytes(whole[:-2])
            assert saved.problem()
        path.unlink()
        assert saved.problem(), path
        path.write_bytes(whole)
        assert saved.problem() is None


def test_every_flipped_bit_of_a_manifest_is_found_or_says_nothing(tmp_path, state, words):
    """A version, a checksum or a name that has become another one."""
    saved = write(tmp_path, state, words, 1)
    path = saved.folder / "manifest.json"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.permutation(8 * len(whole))[:3000]:
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            said = saved._manifest()
        except UserError as error:
            assert not isinstance(error, FormatError) and "manifest.json" in str(error)
        else:
            path.write_bytes(whole)
            assert said == saved._manifest()


def test_a_damaged_newest_is_set_aside_and_the_one_before_taken(tmp_path, state, words, capsys):
    for step in (1, 2):
        write(tmp_path, state, words, step)
    (tmp_path / "checkpoints/00000002/config.json").write_text("{}")
    assert open_run(tmp_path, "last").step == 1  # reading changes nothing
    assert [c.step for c in checkpoints(tmp_path)] == [1, 2]
    assert newest_intact(tmp_path).step == 1
    assert [c.step for c in checkpoints(tmp_path)] == [1]
    assert (tmp_path / "checkpoints/00000002.damaged").is_dir()
    assert "config.json" in capsys.readouterr().err


def test_what_nobody_reads_is_not_looked_at(tmp_path, state, words, capsys):
    """Of gigabytes of optimizer state, and of checkpoints that are older than the one to go on from."""
    states = [write(tmp_path, state, words, step).folder / "opt_state/manifest.ocdbt" for step in (1, 2)]
    states[0].write_bytes(b"")
    assert newest_intact(tmp_path).step == 2
    states[1].write_bytes(b"")
    assert open_run(tmp_path, "last").step == 2
    assert capsys.readouterr().err == ""
    assert [c.step for c in checkpoints(tmp_path)] == [1, 2]


def test_when_all_are_damaged_nothing_is_touched(tmp_path, state, words):
    write(tmp_path, state, words, 1)
    (tmp_path / "checkpoints/00000001/manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged .*nothing was changed"):
        newest_intact(tmp_path)
    with pytest.raises(UserError, match="no intact checkpoint"):
        open_run(tmp_path)
    assert [c.step for c in checkpoints(tmp_path)] == [1]


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="has no checkpoint: train first"):
        open_run(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file: give the folder of a run"):
        open_run(tmp_path / "file")


def test_checkpoints_that_are_a_file_are_refused_at_the_start(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(UserError, match=r"--workdir .*: .*/checkpoints is a file; choose another folder"):
        check_folder(tmp_path)


@pytest.mark.parametrize(("evaluations", "begun", "lost"), [(0, False, 0), (1, True, 0), (1, False, 1), (2, True, 1)])
def test_metrics_tell_of_checkpoints_that_are_lost(tmp_path, evaluations, begun, lost):
    """And a run killed while its first checkpoint is written behind its updates has lost none."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + '{"validation_loss": 1}\n{"step": 2}\n' * evaluations)
    if begun:
        (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="none of its checkpoints: put them back") if lost else nullcontext():
        check_history(tmp_path)


def test_a_failing_save_leaves_the_one_before(tmp_path, state, words, monkeypatch):
    write(tmp_path, state, words, 1)

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_manifest", full)
    with pytest.raises(UserError, match="No space left on device; the checkpoint of step 1 is intact"):
        write(tmp_path, state, words, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def forge(saved, document):
    """Write a manifest as a stranger can, or another version of the program: with a checksum that is right."""
    document["sha256"] = own_checksum(document)
    (saved.folder / "manifest.json").write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd"])
def test_a_manifest_cannot_point_outside(tmp_path, state, words, name):
    saved = write(tmp_path, state, words, 1)
    document = json.loads((saved.folder / "manifest.json").read_text())
    document["files"][name] = [0, ""]
    forge(saved, document)
    assert "outside its folder" in saved.problem()


def test_a_link_to_outside_is_not_followed(tmp_path, state, words):
    """Somebody's own files read, and perhaps shown, because a folder from a stranger links to them."""
    saved = write(tmp_path / "run", state, words, 1)
    for inside in (saved.folder / "config.json", saved.folder / "params"):
        outside = inside.rename(tmp_path / inside.name)
        inside.symlink_to(outside)
        assert "outside its folder" in saved.problem()
        inside.unlink()
        outside.rename(inside)
        assert saved.problem() is None


def test_another_format_version_is_refused_with_the_reason(tmp_path, state, words):
    """And not taken for damage, which is set aside."""
    write(tmp_path, state, words, 1)
    newest = write(tmp_path, state, words, 2)
    forge(newest, json.loads((newest.folder / "manifest.json").read_text()) | {"format_version": 99})
    for read in (newest_intact, open_run, saved_config):
        with pytest.raises(FormatError, match="is of format 99, and this program reads format 1"):
            read(tmp_path)
    assert [c.step for c in checkpoints(tmp_path)] == [1, 2]


def test_the_best_is_not_another_one_because_its_progress_is_damaged(tmp_path, state, words, capsys):
    """Stories from other parameters than yesterday, and nobody knows why."""
    for step, loss in ((1, 1.0), (2, 2.0)):
        write(tmp_path, state, words, step, loss)
    path = tmp_path / "checkpoints/00000001/progress.json"
    path.write_text(path.read_text().replace("1.0", "9.0"))
    assert open_run(tmp_path, "best").step == 2
    assert "progress.json has changed" in capsys.readouterr().err


def test_a_checkpoint_with_another_models_arrays_is_one_line(tmp_path, state, words):
    """A stranger's configuration, with checksums that agree: no traceback, and nothing large is allocated."""
    folder = write(tmp_path, state, words, 1).folder
    model = dataclasses.replace(CONFIG.model, d_model=2**16, n_heads=2)
    (folder / "config.json").write_text(dataclasses.replace(CONFIG, model=model).to_json())
    write_manifest(folder)
    with pytest.raises(UserError, match="does not hold the arrays of the configuration") as caught:
        open_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_stored_in_huge_pieces_is_one_line(tmp_path, state, words):
    """A stranger's file of a few kB that unpacks to 8 GiB: refused before memory is taken."""
    import tensorstore

    folder = write(tmp_path, state, words, 1).folder
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder / 'params'}/"}).result()
    form = json.loads(store.read("token_embedding/.zarray").result().value)
    store.write("token_embedding/.zarray", json.dumps(form | {"chunks": [2**30, 2]}).encode()).result()
    write_manifest(folder)
    with pytest.raises(UserError, match="does not hold the arrays of the configuration: Requested more bytes"):
        open_run(tmp_path)


def test_a_run_is_read_while_it_saves_and_removes(tmp_path, state, words, capsys):
    """A checkpoint that is gone before its reader is done, and is called damaged; or half of its arrays."""
    saved = write(tmp_path, state, words, 1, loss=1.0)
    ready = [Checkpoint(shutil.copytree(saved.folder, tmp_path / f"{step:08d}")) for step in range(2, 60)]
    for one in ready:
        (one.folder / "progress.json").write_text(Progress(one.step, "corpus", 1 / one.step).to_json())
        document = json.loads((one.folder / "manifest.json").read_text())
        document["files"]["progress.json"] = mark_of(one.folder / "progress.json")
        forge(one, document)

    def train():
        for one in ready:  # always a new best one
            one.folder.rename(saved.folder.with_name(one.folder.name))
            remove_old(tmp_path, keep_some_of_all=False)
            time.sleep(0.04)  # a busy machine opens none in less

    thread, steps = threading.Thread(target=train), []
    thread.start()
    while thread.is_alive():
        steps += [open_run(tmp_path, which).step for which in ("best", "last")]
        assert all(saved_config(tmp_path) == CONFIG for _ in range(5))
    thread.join()
    assert capsys.readouterr().err == ""
    assert [saved.step for saved in checkpoints(tmp_path)] == [58, 59] and len(set(steps)) > 2


def test_a_checkpoint_with_another_vocabulary_is_damaged(tmp_path, state, words):
    folder = write(tmp_path, state, words, 1).folder
    (folder / "tokenizer.json").write_text(tokenizer.gpt2().to_json())
    write_manifest(folder)
    assert "has a vocabulary of 50257 tokens and a model of 300" in checkpoints(tmp_path)[0].problem()
