"""A batch over several devices, where XLA would not find by itself that each is to work on its own rows.

The devices are those of the mesh in whose context a function is traced; without one there is one device.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec


def on_each_device(function: Callable[..., Any], *arrays: jax.Array, whole: tuple[int, ...] = ()) -> Any:
    """`function(*arrays)`, where a device has its share of the first axis of each array and result.

    A kernel is a closed book to XLA, which would run it on all rows on every device.
    Rows that do not divide, all devices take.

    Args:
        function: gives the same for some rows whether others are there or not.
        arrays: its arguments.
        whole: the numbers of those that each device has all of.
    """
    mesh = jax.sharding.get_abstract_mesh()
    cut = [x for i, x in enumerate(arrays) if i not in whole]
    if mesh.empty or mesh.size == 1 or any(len(x) % mesh.size for x in cut):
        return function(*arrays)
    rows = PartitionSpec(mesh.axis_names)
    specs = tuple(PartitionSpec() if i in whole else rows for i in range(len(arrays)))
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(*arrays)


def stay_with_rows(x: jax.Array) -> jax.Array:
    """`x`, each device with its rows. Where parameters are cut over devices too, XLA then moves those, not `x`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or len(x) % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))
