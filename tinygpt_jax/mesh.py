"""What a mesh is called: the sizes of its two axes from words."""

import math
import re

from tinygpt_jax.errors import UsageError


def mesh_axes(described: str | None, devices: int) -> dict[str, int]:
    """How many devices lie along data, and along fsdp.

    Args:
        described: for example `data=4,fsdp=2`, or one of them; the other takes what is left (default: all on data).
        devices: how many there are.

    Raises:
        UsageError: the description is another, or does not come out at the number of devices.
    """
    sizes: dict[str, int] = {}
    for part in (described or f"data={devices}").split(","):
        axis = re.fullmatch(r"(data|fsdp)=([1-9]\d{0,8})", part.strip(), re.ASCII)
        if axis is None or axis[1] in sizes:
            raise UsageError(f"mesh {described}: must be like data=4,fsdp=2, or one of the two, each with a number")
        sizes[axis[1]] = int(axis[2])
    left = devices // math.prod(sizes.values())
    axes = {axis: sizes.get(axis, left) for axis in ("data", "fsdp")}
    if math.prod(axes.values()) != devices:
        there = "there is 1" if devices == 1 else f"there are {devices}"
        raise UsageError(f"mesh {described}: data x fsdp must be the number of devices, and {there}")
    return axes
