"""What a program's kernels move and compute, and what its devices exchange."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tinygpt_jax.estimate.exchanges import KINDS, Exchange, exchange
from tinygpt_jax.estimate.program import Computation, Instruction, Program, root

# Nothing runs for these: they name, group or look at memory in another way.
_NO_KERNEL = frozenset(
    "parameter get-tuple-element tuple bitcast constant after-all partition-id replica-id opt-barrier iota".split()
)
# Of these a result's element may need any element of the operands, so that all of them are read.
_READS_ALL = frozenset(
    "tuple reduce dot scatter reduce-window sort concatenate pad fusion call custom-call convolution".split()
)


@dataclass(frozen=True)
class Kernel:
    """One launch."""

    instruction: Instruction
    bytes: float  # read and written in the card's memory
    flops: float  # of the products in it; other arithmetic is not counted
    dtype: str  # of what the products multiply
    times: int  # launches in a run of the program, with one round of a loop whose rounds are not known


@dataclass(frozen=True)
class Wait:
    """Where the kernels that follow need what an exchange brings that was started earlier."""

    started: str  # name of the exchange's instruction


def kernels_and_exchanges(
    program: Program, written_by_hand: Mapping[str, float] | None = None
) -> tuple[list[Kernel], list[Exchange]]:
    """Of all that runs, the kernels, and the exchanges."""
    found = schedule(program, written_by_hand)
    return [x for x in found if isinstance(x, Kernel)], [x for x in found if isinstance(x, Exchange)]


def schedule(program: Program, written_by_hand: Mapping[str, float] | None = None) -> list[Kernel | Exchange | Wait]:
    """All that runs, in order. Of a conditional's branches the one that moves most counts.

    Args:
        program: the program of one device.
        written_by_hand: FLOP of Pallas kernels by their names, which the program holds in no form to be read.
    """
    found = _walk(program, program.entry, 1)
    return [_with_known_flops(x, written_by_hand or {}) if isinstance(x, Kernel) else x for x in found]


def _with_known_flops(kernel: Kernel, flops: Mapping[str, float]) -> Kernel:
    name = re.search(r"([^/]+)/pallas_call", kernel.instruction.op_name)
    if not name or name[1] not in flops:
        return kernel
    return replace(kernel, flops=flops[name[1]], dtype=kernel.instruction.result[0].dtype)


def _walk(program: Program, name: str, times: int) -> Iterator[Kernel | Exchange | Wait]:
    computation = program.computations[name]
    for instruction in computation.values():
        opcode = instruction.opcode
        if opcode.removesuffix("-done") in KINDS and opcode.endswith("-done"):
            yield Wait(instruction.operands[0])
        elif opcode in _NO_KERNEL or opcode.endswith(("-done", "-update")):
            continue
        elif opcode == "while":
            yield from _walk(program, instruction.called[0], times * (instruction.rounds or 1))
        elif opcode == "conditional":
            branches = [list(_walk(program, called, times)) for called in instruction.called]
            yield from max(branches, key=lambda found: sum(x.bytes * x.times for x in found if not isinstance(x, Wait)))
        elif opcode in ("call", "async-start"):
            yield from _walk(program, instruction.called[0], times)
        elif opcode.removesuffix("-start") in KINDS:
            yield exchange(instruction, computation, times, program.devices)
        else:
            moved = _bytes_moved(program, computation, instruction)
            flops, dtype = _product_flops(program, computation, instruction)
            yield Kernel(instruction, moved, flops, dtype, times)


def _bytes_moved(program: Program, computation: Computation, instruction: Instruction) -> float:
    opcode, operands = instruction.opcode, [computation[name] for name in instruction.operands]
    if opcode == "fusion":
        return _bytes_of_fusion(program.computations[instruction.called[0]])
    if opcode == "dynamic-update-slice":  # in place
        return 2 * operands[1].bytes
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * instruction.bytes
    results = instruction.result[:1] if _is_library_product(instruction) else instruction.result  # without its scratch
    return sum(array.bytes for array in results) + sum(operand.bytes for operand in operands)


def _bytes_of_fusion(body: Computation) -> float:
    """Bytes read and written: of an operand that is only sliced or gathered what is taken, of an update in place the
    update."""
    needed = _elements_needed(body)
    parameters = (instruction for instruction in body.values() if instruction.opcode == "parameter")
    read = sum(x.bytes * needed[x.name] / x.size for x in parameters if x.size)
    last = root(body)
    outputs = [body[name] for name in last.operands] if last.opcode == "tuple" else [last]
    return read + sum(_bytes_written(body, output) for output in outputs)


def _bytes_written(body: Computation, output: Instruction) -> int:
    while output.opcode == "bitcast":
        output = body[output.operands[0]]
    return body[output.operands[1]].bytes if output.opcode == "dynamic-update-slice" else output.bytes


def _elements_needed(body: Computation) -> dict[str, float]:
    """How many elements of each instruction's result the fusion's results need, from the last to the first."""
    needed: dict[str, float] = defaultdict(float)
    last = root(body)
    needed[last.name] = last.size
    for instruction in reversed(body.values()):
        wanted = needed[instruction.name]
        if not wanted:
            continue
        for place, name in enumerate(instruction.operands):
            size = body[name].size
            if instruction.opcode in ("gather", "dynamic-slice", "slice") and place == 0:
                needed[name] = min(size, needed[name] + wanted)  # another part each time
            else:
                needed[name] = max(needed[name], min(size, _wanted(instruction, place, wanted, size)))
    return needed


def _wanted(instruction: Instruction, place: int, wanted: float, size: int) -> float:
    """Elements of an operand that `wanted` elements of the result need."""
    opcode = instruction.opcode
    if opcode == "dynamic-update-slice":
        return (0, size, 1)[min(place, 2)]
    if opcode in ("dynamic-slice", "slice"):  # where it begins
        return 1
    if opcode == "gather" or opcode in _READS_ALL:
        return size
    return wanted


def _product_flops(program: Program, computation: Computation, instruction: Instruction) -> tuple[float, str]:
    """FLOP of all products in a kernel, and what they multiply."""
    if instruction.opcode == "dot":
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    elif _is_library_product(instruction):
        summed = re.search(r'"lhs_contracting_dimensions":\[([\d,"]*)\]', instruction.attributes)
    else:
        total, dtype = 0.0, ""
        for name in instruction.called:
            body = program.computations[name]
            for inner in body.values():
                flops, found = _product_flops(program, body, inner)
                total, dtype = total + flops, dtype or found
        return total, dtype
    left = computation[instruction.operands[0]].result[0]
    axes = re.findall(r"\d+", summed[1]) if summed else []
    return 2.0 * instruction.result[0].size * math.prod(left.dims[int(axis)] for axis in axes), left.dtype


def _is_library_product(instruction: Instruction) -> bool:
    """Whether cuBLAS computes it, as on cards before Ampere; XLA's own products are fusions."""
    return instruction.target.startswith("__cublas")
