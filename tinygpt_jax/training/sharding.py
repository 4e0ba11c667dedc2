"""How a run lies on several devices: batches by rows, parameters and optimizer state in parts.

A mesh has two axes. Each device of either takes its share of a batch's rows. Along `data` all devices hold the same
numbers; along `fsdp` each holds a part of every large array, gathers the rest when it is needed, and keeps only its
part of the gradient (Rajbhandari et al. 2020, ZeRO; Zhao et al. 2023, FSDP). XLA puts the exchanges in.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tinygpt_jax.data.batches import Batch
from tinygpt_jax.errors import UsageError

# Smaller arrays, such as biases, are whole on each device: an exchange costs more than their memory.
_LEAST_CUT = 2**14


def make_mesh(described: str | None = None, devices: Any = None) -> Mesh:
    """The devices, those of a process side by side, on the axes data and fsdp.

    Args:
        described: for example `data=4,fsdp=2`, or one of them; the other takes what is left (default: all on data).
        devices: those to use (default: all of all processes).

    Raises:
        UsageError: the description is another, or does not come out at the number of devices.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    axes = _axes(described, len(devices))
    return Mesh(np.array(devices).reshape(tuple(axes.values())), tuple(axes), axis_types=(AxisType.Auto,) * 2)


def _axes(described: str | None, devices: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in (described or f"data={devices}").split(","):
        axis = re.fullmatch(r"(data|fsdp)=([1-9]\d{0,8})", part.strip(), re.ASCII)
        if axis is None or axis[1] in sizes:
            raise UsageError(f"mesh {described}: give how many devices as data=4,fsdp=2, or one of the two")
        sizes[axis[1]] = int(axis[2])
    left = devices // math.prod(sizes.values())
    axes = {axis: sizes.get(axis, left) for axis in ("data", "fsdp")}
    if math.prod(axes.values()) != devices:
        there = "there is 1 device" if devices == 1 else f"there are {devices} devices"
        raise UsageError(f"mesh {described}: {there}, which data x fsdp must come out at")
    return axes


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """An equal share of the rows on each device."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def in_parts(arrays: Any, mesh: Mesh) -> Any:
    """For each array of a tree, or what describes it: cut along its largest axis that divides, or whole."""
    parts = mesh.shape.get("fsdp", 1)

    def sharding(x: Any) -> NamedSharding:
        axes = [axis for axis, length in enumerate(x.shape) if length % parts == 0]
        if parts == 1 or not axes or x.size < _LEAST_CUT:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(sharding, arrays)


def rows_here(rows: int, mesh: Mesh) -> range:
    """Which rows of a batch belong to this process's devices. The rows divide over all devices."""
    here = [place for place, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    share = rows // mesh.size
    return range(min(here) * share, (max(here) + 1) * share)


def on_one_device(arrays: Any, mesh: Mesh) -> Any:
    """All of a state's arrays, on a device of this process. Every process takes part."""
    if mesh.shape["fsdp"] > 1:
        arrays = jax.jit(lambda x: x, out_shardings=replicated(mesh))(arrays)
    return jax.tree.map(lambda x: x.addressable_data(0), arrays)


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Send this process's rows of a batch to its devices."""
    return Batch(*(jax.make_array_from_process_local_data(by_rows(mesh), x) for x in batch))
