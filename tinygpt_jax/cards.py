"""NVIDIA's cards in the makers' figures: what they can do at most, and what a compiler has to know of them.

Rates and sizes are the datasheets'; processors, caches and clocks of the B200, H200, H100, A100 and V100 are those that
XLA itself compiles for (its `target_config/specs`), of the others the architecture papers'; limits of a processor are
those of the CUDA C++ Programming Guide, table "technical specifications per compute capability". Memory is what the
driver leaves to programs.
"""

import re
from dataclasses import dataclass

from tinygpt_jax.errors import UsageError

_GIB = 2**30

# Machines of a cluster, as NVIDIA's DGX H100 is: each card has a network card of 400 Gbit/s for itself.
CARDS_OF_A_MACHINE = 8
NETWORK_RATE = 50e9  # bytes/s of each card to other machines, each way


@dataclass(frozen=True)
class Generation:
    """What all cards of one compute capability have in common."""

    capability: tuple[int, int]
    threads: int  # resident on a processor
    units: int  # float32 units of a processor
    shared_memory: int  # bytes of a processor
    block_shared_memory: int  # bytes that one block may take of it
    link: float  # bytes/s of one NVLink, each way
    pcie: float  # bytes/s, each way
    tensor_float32: bool  # whether float32 products run on tensor cores, at half the rate of bfloat16


VOLTA = Generation((7, 0), 2048, 64, 96 * 1024, 96 * 1024, 25e9, 2**34, False)
TURING = Generation((7, 5), 1024, 64, 64 * 1024, 64 * 1024, 25e9, 2**34, False)
AMPERE = Generation((8, 0), 2048, 64, 164 * 1024, 163 * 1024, 25e9, 2**35, True)
AMPERE_GRAPHICS = Generation((8, 6), 1536, 128, 100 * 1024, 99 * 1024, 25e9, 2**35, True)
ADA = Generation((8, 9), 1536, 128, 100 * 1024, 99 * 1024, 25e9, 2**35, True)
HOPPER = Generation((9, 0), 2048, 128, 228 * 1024, 227 * 1024, 25e9, 2**35, True)
BLACKWELL = Generation((10, 0), 2048, 128, 228 * 1024, 227 * 1024, 50e9, 2**36, True)


@dataclass(frozen=True)
class Card:
    """One kind of card."""

    name: str  # NVIDIA's, without what `_DETAILS` matches: brands, the memory, and SXM, which has the full rate
    generation: Generation
    memory: int  # bytes
    bandwidth: float  # bytes/s
    bfloat16_flops: float  # FLOP/s of dense products (of float16 where there is no bfloat16: Volta and Turing)
    processors: int
    l2_cache: int  # bytes
    clock: float  # GHz
    links: int = 0  # NVLinks
    plain_float32_flops: float = 0.0  # FLOP/s of the processors' own units; not used where tensor cores do it

    @property
    def float32_flops(self) -> float:
        """FLOP/s of products that JAX calls float32: TF32 on tensor cores where there is such a thing."""
        return self.bfloat16_flops / 2 if self.generation.tensor_float32 else self.plain_float32_flops

    @property
    def exchange_rate(self) -> float:
        """Bytes/s to other cards of the machine, each way."""
        return self.links * self.generation.link or self.generation.pcie


CARDS = {
    "b200": Card("B200", BLACKWELL, 191514411008, 7.672e12, 2250e12, 148, 132644864, 1.965, 18),
    "h200": Card("H200", HOPPER, 151397597184, 4.8e12, 989e12, 132, 50 * 2**20, 1.98, 18),
    "h100": Card("H100", HOPPER, 84942979072, 3.352e12, 989e12, 132, 50 * 2**20, 1.98, 18),
    "h100-pcie": Card("H100 PCIe", HOPPER, 84942979072, 2.039e12, 756e12, 114, 50 * 2**20, 1.755),
    "a100": Card("A100", AMPERE, 42331013120, 1.555e12, 312e12, 108, 40 * 2**20, 1.41, 12),
    "a100-80": Card("A100", AMPERE, 85100068864, 2.039e12, 312e12, 108, 40 * 2**20, 1.41, 12),
    "a100-pcie": Card("A100 PCIe", AMPERE, 42331013120, 1.555e12, 312e12, 108, 40 * 2**20, 1.41),
    "a100-pcie-80": Card("A100 PCIe", AMPERE, 85100068864, 1.935e12, 312e12, 108, 40 * 2**20, 1.41),
    "l40s": Card("L40S", ADA, int(44.4 * _GIB), 0.864e12, 362e12, 142, 96 * 2**20, 2.52),
    "l40": Card("L40", ADA, int(44.4 * _GIB), 0.864e12, 181e12, 142, 96 * 2**20, 2.49),
    "l4": Card("L4", ADA, 22 * _GIB, 0.300e12, 121e12, 58, 48 * 2**20, 2.04),
    "a10": Card("A10", AMPERE_GRAPHICS, 22 * _GIB, 0.600e12, 125e12, 72, 6 * 2**20, 1.695),
    "a10g": Card("A10G", AMPERE_GRAPHICS, 22 * _GIB, 0.600e12, 70e12, 80, 6 * 2**20, 1.71),
    "rtx4090": Card("RTX 4090", ADA, int(23.6 * _GIB), 1.008e12, 165e12, 128, 72 * 2**20, 2.52),
    "rtx3090": Card("RTX 3090", AMPERE_GRAPHICS, int(23.6 * _GIB), 0.936e12, 71e12, 82, 6 * 2**20, 1.695),
    "t4": Card("T4", TURING, 15828320256, 0.320e12, 65e12, 40, 4 * 2**20, 1.59, plain_float32_flops=8.1e12),
    "v100": Card("V100", VOLTA, 16935682048, 0.898e12, 125e12, 80, 6 * 2**20, 1.53, 6, 15.7e12),
    "v100-32": Card("V100", VOLTA, 34079637504, 0.898e12, 125e12, 80, 6 * 2**20, 1.53, 6, 15.7e12),
    "v100-pcie": Card(
        "V100 PCIe", VOLTA, 16935682048, 0.898e12, 112e12, 80, 6 * 2**20, 1.38, plain_float32_flops=14e12
    ),
}
_DETAILS = re.compile(r"^(NVIDIA |Tesla |GeForce )+|[ -](SXM\d|\d+GB|HBM3e?)\b")


def card(name: str) -> Card:
    """The card that a flag calls `name`.

    Raises:
        UsageError: there is none.
    """
    if name.lower() not in CARDS:
        raise UsageError(f"unknown GPU {name!r}; there are: {', '.join(CARDS)}")
    return CARDS[name.lower()]


def cards_of_kind(kind: str) -> dict[str, Card]:
    """The cards that JAX calls `kind`, such as `NVIDIA A100-SXM4-40GB`; they differ in memory and its rate alone."""
    plain = _DETAILS.sub("", kind).replace("-PCIE", " PCIe")
    return {name: entry for name, entry in CARDS.items() if entry.name == plain}
