"""What must not depend on interruptions, reduced to checksums. For `faults` and `corruption`."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from tinygpt_jax.errors import UserError
from tinygpt_jax.runs.checkpoint_files import checkpoints
from tinygpt_jax.training.checkpoint import restore_state
from tinygpt_jax.training.optimizer import make_optimizer


def outcome(workdir: Path) -> dict[str, str]:
    """Of the newest checkpoint, the best, and the lines; of `timings.jsonl` only whether its lines are whole.

    Raises:
        UserError: the newest checkpoint is not intact.
    """
    newest = checkpoints(workdir)[-1]
    if problem := newest.problem():
        raise UserError(problem)
    config = newest.config()
    optimizer = make_optimizer(config.optimizer, config.training.steps or 1)
    state = restore_state(newest, optimizer, SingleDeviceSharding(jax.devices()[0]))
    arrays = hashlib.sha256()
    for array in jax.tree.leaves(state):
        arrays.update(np.asarray(array).tobytes())
    best = min(checkpoints(workdir), key=lambda saved: saved.validation_loss)
    found = {
        "newest checkpoint": f"step {newest.step}",
        "best checkpoint": f"step {best.step}, loss {best.validation_loss}",
        "parameters and optimizer state": arrays.hexdigest(),
    }
    for name in ("metrics.jsonl", "samples.jsonl", "timings.jsonl"):
        content = (workdir / name).read_bytes()
        found[name] = hashlib.sha256(content).hexdigest() if name != "timings.jsonl" else "whole"
        steps = [json.loads(line)["step"] for line in content.decode().split("\n")[:-1]]
        if not content.endswith(b"\n") or steps != sorted(steps):
            found[name] = "torn or doubled lines"
    return found


def compare(name: str, found: dict[str, str], expected: dict[str, str]) -> None:
    """Raise UserError if two outcomes differ."""
    if differing := [what for what in expected if found.get(what) != expected[what]]:
        raise UserError(f"{name} ended with other {', '.join(differing)}: {found} in place of {expected}")
