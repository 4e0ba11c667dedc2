"""Make safetensors of a pytorch_model.bin: python -m experiments.convert_pytorch --model old/ --to new/"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import cli
from tinygpt_jax.errors import UserError, first_line


@dataclass(frozen=True)
class Arguments:
    """Make a folder with model.safetensors of one with pytorch_model.bin, for experiments.import_model. Needs torch.

    A .bin file is a pickle, which can hold a program. It is opened with torch.load(weights_only=True), which runs none.
    """

    model: str  # folder with config.json and pytorch_model.bin, or in pieces; or the model's name at the hub
    to: Path  # the new folder


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and convert."""
    arguments = cli.parse(Arguments, argv)

    from tinygpt_jax.exchange.folders import CONFIG, PARAMETERS, new_folder
    from tinygpt_jax.exchange.hub import local_path
    from tinygpt_jax.exchange.tensors import save_tensors

    folder = local_path(arguments.model, also=("pytorch_model*.bin",))
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files and (folder / CONFIG).is_file() and any(folder.glob("*.safetensors")):
        raise UserError(
            f"nothing to convert: {folder} has safetensors already; "
            f"python -m experiments.import_model --model {arguments.model} takes it as it is"
        )
    if not files or not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no config.json with a pytorch_model.bin: give the folder of a PyTorch model")
    tensors = {name: array for path in files for name, array in _load(path).items()}
    with new_folder(arguments.to) as partial:
        for path in [*folder.glob("*.json"), *folder.glob("merges.txt")]:
            if path.is_file() and not path.name.endswith(".index.json"):
                shutil.copyfile(path, partial / path.name)
        save_tensors(tensors, partial / PARAMETERS, {"format": "pt"})
    print(f"{arguments.to}: {len(tensors)} tensors, for python -m experiments.import_model --model {arguments.to}")


def _load(path: Path) -> dict[str, Any]:
    """The tensors of a file as arrays; float32, as numpy has no bfloat16."""
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError('this command needs PyTorch: pip install torch, or pip install ".[huggingface]"') from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a pickle with a program, half a file, and whatever else
        raise UserError(f"{path} is not a file of tensors alone: {first_line(error)[:150]}") from None
    if not isinstance(found, dict) or not all(isinstance(x, torch.Tensor) for x in found.values()):
        raise UserError(f"{path} is not the tensors of a model: give what save_pretrained wrote")
    return {name: (x.float() if x.is_floating_point() else x).contiguous().numpy() for name, x in found.items()}


if __name__ == "__main__":
    cli.run(main)
