"""Parameters as text in a page, in float16 or in steps of eight bits. `page/weights.js` reads it.

The text is base64 of gzip of all parameters in their order, matrices with their outputs first:

    float16   the low bytes of all numbers, then their high bytes, which are alike and pack better side by side
    int8      a float32 scale for each row of a matrix, then its numbers in multiples of that; vectors in float16
"""

import base64
import gzip
import math
from typing import Any, Literal

import numpy as np

from tinygpt_jax.config import ModelConfig
from tinygpt_jax.errors import UserError
from tinygpt_jax.exchange.tensors import assembled, named, parameter_shapes
from tinygpt_jax.training.checkpoint import Run

Form = Literal["float16", "int8"]

# Used as x W: their outputs come second. Tables and the head have a row for each token or position.
_OUTPUTS_SECOND = ("qkv_weight", "out_weight", "weight_in", "weight_out")
_PER_LETTER = 6 / 8  # bytes that a letter of base64 holds


def letters(config: ModelConfig, form: Form) -> float:
    """How many letters the parameters of a model take at most; gzip makes them a tenth fewer."""
    numbers = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    return numbers * {"float16": 2, "int8": 1}[form] / _PER_LETTER


def pack(run: Run, form: Form) -> tuple[list[dict[str, Any]], str]:
    """The parameters' names, shapes and dtypes in order, and the text.

    Raises:
        UserError: a number is too large for float16, or none.
    """
    described, parts = [], []
    for name, array in _outputs_first(run).items():
        dtype = form if array.ndim > 1 else "float16"
        described.append({"name": name, "shape": array.shape, "dtype": dtype})
        if dtype == "int8":
            scale, steps = _quantised(array)
            parts += [scale.tobytes(), steps.tobytes()]
        else:
            pairs = array.astype("<f2").view(np.uint8).reshape(-1, 2)
            parts += [pairs[:, 0].tobytes(), pairs[:, 1].tobytes()]
    packed = gzip.compress(b"".join(parts), mtime=0)  # the same page from the same run
    return described, base64.b64encode(packed).decode("ascii")


def rounded(run: Run, form: Form) -> Any:
    """The run's parameters as the page has them, for JAX."""
    arrays = {}
    for name, array in _outputs_first(run).items():
        if form == "int8" and array.ndim > 1:
            scale, steps = _quantised(array)
            array = scale * steps.astype(np.float32)
        else:
            array = array.astype(np.float16).astype(np.float32)
        arrays[name] = array.T if name.endswith(_OUTPUTS_SECOND) else array
    return assembled(run.config.model, arrays)


def _outputs_first(run: Run) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(leaf, np.float32) for name, leaf in named(run.params).items()}
    for name, array in arrays.items():
        if not np.abs(array).max() <= np.finfo(np.float16).max:
            raise UserError(f"the parameter {name} has numbers that float16 cannot hold, and a page would not show it")
    first = {name: array.T if name.endswith(_OUTPUTS_SECOND) else array for name, array in arrays.items()}
    return {name: np.ascontiguousarray(array) for name, array in first.items()}


def _quantised(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row a scale, float32 `[rows, 1]`, and the whole multiples of it that are nearest."""
    scale = np.abs(matrix).max(axis=1, keepdims=True) / np.float32(127)
    return scale, np.rint(matrix / np.where(scale == 0, 1, scale)).astype(np.int8)
