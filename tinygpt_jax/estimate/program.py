"""A compiled program as XLA prints it (scheduled HLO), read into something that can be asked.

The text is a list of computations. Each instruction is a line `%name = shape opcode(%operands), attributes`. The entry
computation is what runs; its fusions and custom calls are kernels, and name the computations that say what happens
inside of them.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

_BITS = re.compile(r"\d+")
_ARRAY = re.compile(r"\b(pred|bf16|f8\w+|[fsuc]\d+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_ALIASES = re.compile(r"\{(\d+)\}: \((\d+), \{\}, may-alias\)")
_DEVICES = re.compile(r"num_partitions=(\d+)")
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Array(NamedTuple):
    """The shape of an array; `dtype` in XLA's short names, such as bf16, f32 or pred."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Its memory."""
        bits = 8 if self.dtype == "pred" else int(_BITS.findall(self.dtype)[0])
        return -(-self.size * bits // 8)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result: tuple[Array, ...]  # one array, or those of a tuple
    operands: tuple[str, ...]  # names of instructions of the same computation
    attributes: str  # all that stands behind the operands
    is_root: bool

    @property
    def size(self) -> int:
        """Elements of the result."""
        return sum(array.size for array in self.result)

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.result)

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from: a path of transformations, modules and operations."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """Of a custom call: whose."""
        found = re.search(r'custom_call_target="([^"]+)"', self.attributes)
        return found[1] if found else ""

    @cached_property
    def called(self) -> tuple[str, ...]:
        """The computations it names: a fusion's or a loop's body, the branches of a conditional."""
        names = (one or several for one, several in _CALLED.findall(self.attributes))
        return tuple(name.strip().lstrip("%") for group in names for name in group.split(","))

    @property
    def rounds(self) -> int | None:
        """How often a loop's body runs, where the compiler knows it."""
        found = _ROUNDS.search(self.attributes)
        return int(found[1]) if found else None


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Program:
    """All computations, in the order of the text; each one's instructions in the order in which they run."""

    computations: dict[str, Computation]
    entry: str
    aliases: dict[int, int]  # number of a result -> number of the parameter whose memory it takes over
    devices: int = 1  # that run it together

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """All instructions of the computations that it calls, and of those that they call."""
        found = []
        for name in instruction.called:
            for inner in self.computations[name].values():
                found += [inner, *self.inside(inner)]
        return found

    def all_instructions(self) -> list[Instruction]:
        """Of all computations."""
        return [instruction for computation in self.computations.values() for instruction in computation.values()]


def read_program(text: str) -> Program:
    """Read what `jax.stages.Compiled.as_text` gives.

    Raises:
        ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    header, _, body = text.partition("\n")
    for line in body.splitlines():
        if started := _COMPUTATION.match(line):
            current = computations[started[2]] = {}
            entry = started[2] if started[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("this is no compiled program: it has no ENTRY")
    aliases = {int(result): int(parameter) for result, parameter in _ALIASES.findall(header)}
    devices = _DEVICES.search(header)
    return Program(computations, entry, aliases, int(devices[1]) if devices else 1)


def root(computation: Computation) -> Instruction:
    """What a computation gives back."""
    return next(instruction for instruction in computation.values() if instruction.is_root)


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(re.sub(r"/\*index=\d+\*/", "", line))
    if not found:
        return None
    is_root, name, shape, opcode, rest = found.groups()
    operands, attributes = _split_at_closing_bracket(rest)
    arrays = tuple(Array(dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(shape))
    return Instruction(name, opcode, arrays, tuple(re.findall(r"%([\w.\-]+)", operands)), attributes, bool(is_root))


def _split_at_closing_bracket(text: str) -> tuple[str, str]:
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[:place], text[place + 1 :]
    return text, ""
