"""How fast a card could run a program at best: each kernel at the rate of its memory or of its arithmetic.

A kernel takes as long as its bytes do at 85 % of the memory's rate or its products at 70 % of the card's dense rate,
whichever is longer; both shares are what good kernels reach. Caches may do better, and bad kernels do worse.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tinygpt_jax.cards import NETWORK_RATE, Card
from tinygpt_jax.estimate.exchanges import Exchange
from tinygpt_jax.estimate.traffic import Kernel, Wait

MEMORY_SHARE, PRODUCT_SHARE = 0.85, 0.7
LAUNCH_SECONDS = 1.5e-6  # of each kernel, unless they are launched together as a CUDA graph

# Where a kernel belongs, by the modules and functions in its `op_name`; the first that fits. A kernel that XLA fused of
# several operations is named after its last.
_PLACES = (
    ("embedding", r"_embed"),
    ("LayerNorm", r"norm\b"),
    ("products of the blocks", r"blocks_\d+/(?!.*(qe|qk|pallas_call))(attention|feed_forward)/.*dot_general"),
    ("attention", r"/attention/"),
    ("feed-forward: activation, biases", r"/feed_forward/"),
    ("dropout and residuals", r"GPT\.hidden|/blocks_\d+"),
    ("head and loss", r"GPT\.loss|GPT\.decode|GPT\.logits"),
)


class _Sum:
    """A dataclass of numbers, which can be added up."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Part(_Sum):
    """A part of the model, or all of it."""

    kernels: int
    bytes: float
    flops: float
    seconds: float  # at best, without what launches cost


NOTHING = Part(0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Sent(_Sum):
    """What a device sends in exchanges of one kind."""

    times: int
    bytes: float  # to all others
    between_machines: float  # bytes of them that go to other machines
    seconds: float  # at best


NOTHING_SENT = Sent(0, 0.0, 0.0, 0.0)


def kernel_seconds(kernel: Kernel, card: Card) -> float:
    """Of one launch, without what the launch costs."""
    peak = card.bfloat16_flops if kernel.dtype in ("bf16", "f16") else card.float32_flops
    return max(kernel.bytes / (MEMORY_SHARE * card.bandwidth), kernel.flops / (PRODUCT_SHARE * peak))


def exchange_seconds(exchange: Exchange, card: Card) -> float:
    """Of one collective operation whose every device sends at 85 % of the rate of its links, and of its network."""
    between = exchange.sent_between_machines
    return max((exchange.sent - between) / card.exchange_rate, between / NETWORK_RATE) / MEMORY_SHARE


def waiting_seconds(found: Sequence[Kernel | Exchange | Wait], card: Card) -> float:
    """How long kernels wait for exchanges, which go on beside them, one after the other, in the order of the program.

    Of a loop, all rounds are as one in which everything takes so much longer.
    """
    now, computing, linked = 0.0, 0.0, 0.0  # seconds, and until when the links are taken
    ready: dict[str, float] = {}
    for x in found:
        if isinstance(x, Kernel):
            seconds = kernel_seconds(x, card) * x.times
            now, computing = now + seconds, computing + seconds
        elif isinstance(x, Exchange):
            linked = max(linked, now) + exchange_seconds(x, card) * x.times
            if x.instruction.opcode.endswith("-start"):
                ready[x.instruction.name] = linked
            else:
                now = linked
        else:
            now = max(now, ready.get(x.started, now))
    return max(now, linked) - computing


def by_kind(exchanges: Sequence[Exchange], card: Card) -> dict[str, Sent]:
    """What each device sends, by the kind of the operation."""
    found: dict[str, Sent] = {}
    for exchange in exchanges:
        times, seconds = exchange.times, exchange_seconds(exchange, card)
        sent = Sent(times, exchange.sent * times, exchange.sent_between_machines * times, seconds * times)
        found[exchange.kind] = found.get(exchange.kind, NOTHING_SENT) + sent
    return found


def by_part(kernels: Sequence[Kernel], card: Card, rest: str) -> dict[str, Part]:
    """Where the time of the kernels goes, the longest first. `rest` is the name of what belongs to no module."""
    parts: dict[str, Part] = {}
    for kernel in kernels:
        name, times = part_of(kernel.instruction.op_name, rest), kernel.times
        seconds = kernel_seconds(kernel, card) * times
        parts[name] = parts.get(name, NOTHING) + Part(times, kernel.bytes * times, kernel.flops * times, seconds)
    return dict(sorted(parts.items(), key=lambda part: -part[1].seconds))


def part_of(op_name: str, rest: str) -> str:
    """The part of the model that an operation belongs to; `rest` if it is in no module."""
    return next((name for name, place in _PLACES if re.search(place, op_name)), rest)
