"""Models of the hub by their names, through the `huggingface_hub` library and its cache."""

import os
import re
from pathlib import Path

from tinygpt_jax.errors import UserError, first_line

_FILES = ("*.json", "merges.txt", "*.safetensors")


def local_path(name: str | Path, also: tuple[str, ...] = ()) -> Path:
    """A path as it is where there is something, else the folder of the model of that name, downloaded if needed.

    Only what is needed is downloaded, and nothing that could hold a program, but for the files that `also` names.

    Raises:
        UserError: there is neither a file or folder, nor such a model, nor a hub that answers.
    """
    path = Path(name)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
        raise UserError(f"{name}: no such file or folder; give the folder of a model, or its name at the hub")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=[*_FILES, *also]))
    except Exception as error:  # the library raises its own kinds, and those of the libraries below it
        raise UserError(
            f"{name}: no such file or folder, and the hub gives no model of that name ({first_line(error)[:150]}): "
            "give the folder of a model, or a name where there is a network"
        ) from error
