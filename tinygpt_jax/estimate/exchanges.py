"""What devices exchange: how much, with whom, and how much of it between machines."""

import itertools
import math
import re
from dataclasses import dataclass

from tinygpt_jax.cards import CARDS_OF_A_MACHINE
from tinygpt_jax.errors import UserError
from tinygpt_jax.estimate.program import Computation, Instruction

_ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
KINDS = frozenset("all-reduce all-gather reduce-scatter all-to-all collective-permute".split())


@dataclass(frozen=True)
class Exchange:
    """One collective operation."""

    instruction: Instruction
    kind: str  # all-reduce, all-gather, ...
    bytes: int  # of the larger of what goes in and what comes out, on each device
    group: tuple[int, ...]  # of the devices that exchange with each other, the first group
    times: int  # in a run of the program

    @property
    def devices(self) -> int:
        """How many exchange with each other."""
        return len(self.group)

    @property
    def sent(self) -> float:
        """Bytes that each device sends if they pass parts around in a ring."""
        if self.kind == "collective-permute":
            return self.bytes
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.devices - 1) / self.devices

    @property
    def sent_between_machines(self) -> float:
        """Bytes of them that each device sends to another machine.

        Of a ring that goes through one machine after the other, one connection in each leads out. There are as many
        rings as the machine has cards in the group, each with a part of the bytes, and each leads out at another card.
        """
        machines = len({device // CARDS_OF_A_MACHINE for device in self.group})
        return self.sent * machines / self.devices if machines > 1 else 0.0


def exchange(instruction: Instruction, computation: Computation, times: int, devices: int) -> Exchange:
    """A collective operation of a program for so many devices.

    Raises:
        UserError: this version of XLA writes in another way who takes part.
    """
    given = sum(computation[name].bytes for name in instruction.operands)
    received = instruction.bytes
    if len(instruction.result) > len(instruction.operands):  # some asynchronous starts give back their operands too
        received -= given
    kind = instruction.opcode.removesuffix("-start")
    return Exchange(instruction, kind, max(given, received), _first_group(instruction.attributes, devices), times)


def _first_group(attributes: str, devices: int) -> tuple[int, ...]:
    """The first of the groups that exchange, by numbers of devices. XLA writes them in one of several ways."""
    if pairs := re.search(r"source_target_pairs=\{(\{\d+,\d+\}(?:,\{\d+,\d+\})*)\}", attributes):  # from, to
        found = [tuple(map(int, pair)) for pair in re.findall(r"(\d+),(\d+)", pairs[1])]
        return max(found, key=lambda pair: abs(pair[0] - pair[1]))  # one that leads out of a machine, if any does
    text = attributes.partition("replica_groups=")[2]
    if listed := re.match(r"\{\{([\d,]+)\}", text):  # {{0,1,2,3},{4,5,6,7}}
        return tuple(map(int, listed[1].split(",")))
    if text.startswith("{}"):
        return tuple(range(devices))
    if counted := re.match(rf"\[\d+,(\d+)\]<={_ORDER}", text):  # [groups,devices]<=[axes]T(order)
        return tuple(_in_order(counted[2], counted[3])[: int(counted[1])])
    # mesh['data'=8,'fsdp'=2] {'data'}, where after the sizes, device_ids=([2,8]T(1,0)) may say which device is where
    if mesh := re.match(rf"mesh\[([^\]]*)\](?:, device_ids=\({_ORDER}\))? \{{((?:'\w+',? ?)+)\}}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        names, together = list(sizes), re.findall(r"'(\w+)'", mesh[4])
        place = [names.index(name) for name in [*(name for name in names if name not in together), *together]]
        first = _numbers(list(sizes.values()), place)[: math.prod(sizes[name] for name in together)]
        there = _in_order(mesh[2], mesh[3]) if mesh[2] else None
        return tuple(there[place] if there else place for place in first)
    raise UserError(f"cannot read in the compiled program which devices exchange with each other: {text[:80]}")


def _in_order(axes: str, order: str | None) -> list[int]:
    sizes = [int(size) for size in axes.split(",")]
    return _numbers(sizes, [int(axis) for axis in order.split(",")] if order else list(range(len(sizes))))


def _numbers(sizes: list[int], order: list[int]) -> list[int]:
    """The numbers 0, 1, ... of an array of these sizes, read with its axes in another order."""
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    places = itertools.product(*(range(sizes[axis]) for axis in order))
    return [sum(place * strides[axis] for place, axis in zip(each, order, strict=True)) for each in places]
