"""Writing a file whole or not at all."""

import os
from pathlib import Path

from tinygpt_jax.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; its folder is made if needed.

    Raises:
        UserError: the system refuses. What was at `path` is untouched, and nothing is left beside it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; make room or give permission there") from None
