"""What must not depend on interruptions, reduced to checksums. For `faults` and `corruption`."""

import hashlib
import json
from pathlib import Path

from tinygpt_jax.errors import UserError
from tinygpt_jax.files import sha256_of
from tinygpt_jax.runs.checkpoint_files import checkpoints
from tinygpt_jax.runs.folder import LINES


def outcome(workdir: Path) -> dict[str, str]:
    """Of the newest checkpoint, the best, and the lines; of `timings.jsonl` only whether its lines are whole.

    Raises:
        UserError: the newest checkpoint is not intact.
    """
    import jax
    import numpy as np

    from tinygpt_jax.training.checkpoint import restore_state
    from tinygpt_jax.training.optimizer import make_optimizer
    from tinygpt_jax.training.sharding import make_mesh

    newest = checkpoints(workdir)[-1]
    newest.check()
    config = newest.config()
    optimizer = make_optimizer(config.optimizer, config.training.steps or 1)
    state = restore_state(newest, optimizer, make_mesh(devices=jax.devices()[:1]))
    best = min(checkpoints(workdir), key=lambda saved: saved.validation_loss)
    found = {
        "newest checkpoint": f"step {newest.step}",
        "best checkpoint": f"step {best.step}, loss {best.validation_loss}",
        "state": hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))).hexdigest(),
    }
    for path in (workdir / name for name in LINES):
        steps = [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        found[path.name] = sha256_of(path) if path.name != "timings.jsonl" else "whole"
        if steps != sorted(steps) or not path.read_bytes().endswith(b"\n"):
            found[path.name] = "torn or doubled lines"
    return found


def compare(name: str, found: dict[str, str], expected: dict[str, str]) -> None:
    """Raise UserError if two outcomes differ."""
    if differing := [what for what in expected if found.get(what) != expected[what]]:
        raise UserError(f"{name} ended with other {', '.join(differing)}: {found} in place of {expected}")
