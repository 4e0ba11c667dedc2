"""What the program runs on: choosing a device, naming it, its peak rate, and the compilation cache."""

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any, Literal

from tinygpt_jax.cards import cards_of_kind
from tinygpt_jax.errors import UserError, first_line

Device = Literal["auto", "cpu", "gpu"]

USE_THE_GPU = "pip install -e '.[cuda12]'"  # as the README has it

AMPERE = 8.0  # NVIDIA's first generation (2020) with bfloat16 in its tensor cores

# The file of a loaded NVIDIA driver.
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# Whether Linux gives programs large pages: always, where they ask for them (madvise), or never.
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# What glibc reads when a process starts, and how it then asks for them.
TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def restart_with_huge_pages() -> None:
    """Start this program anew with glibc asking for pages of 2 MiB, where it will run on a CPU and Linux has them.

    Each update on a CPU takes its working memory anew, and getting it in pages of 4 KiB takes a fifth of the
    quickstart's time. glibc reads the setting when a process starts; others than glibc ignore it. Call it before
    JAX is imported.
    """
    platforms = os.environ.get("JAX_PLATFORMS") or ("cuda" if _NVIDIA_DRIVER.exists() else "cpu")
    there = _HUGE_PAGES.is_file() and "[madvise]" in _HUGE_PAGES.read_text()
    if platforms == "cpu" and there and TUNABLES not in os.environ:
        os.environ[TUNABLES] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def cache_folder() -> Path:
    """The user's cache folder for this program: `$TINYGPT_CACHE`, else `tinygpt_jax` below `$XDG_CACHE_HOME`."""
    chosen = os.environ.get("TINYGPT_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/tinygpt_jax"
    try:
        return Path(chosen).expanduser()
    except RuntimeError:  # a user without a home folder
        raise UserError(f"there is no folder {chosen}; set TINYGPT_CACHE to one for the program's cache") from None


def use_device(choice: Device = "auto", deterministic: bool = False) -> None:
    """Make JAX run on `choice`, and keep compiled programs between runs. Call it before JAX is first used.

    With `deterministic` a GPU gives the same bits in every run too: XLA then takes no kernel that adds in the order
    in which threads happen to finish, and does not choose kernels by timing them, which costs speed.

    Raises:
        UserError: JAX cannot start the device, or a GPU was asked for and JAX does not see one.
    """
    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "").split()
        os.environ["XLA_FLAGS"] = " ".join([*flags, "--xla_gpu_deterministic_ops=true"])

    import jax

    if choice == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        compiled = (cache_folder() / "compiled").absolute()
        with contextlib.suppress(OSError):  # compiling anew works too; doctor says what is wrong with the folder
            compiled.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(compiled))
    try:
        backend = jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        reason, remedy = first_line(error), "try --device cpu"
        if not str(error):  # JAX_PLATFORMS=cuda without a GPU, or without JAX's part for it
            reason = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')} asks for a device that is not here"
            remedy = f"unset the variable, give --device cpu, or where an NVIDIA GPU is, {USE_THE_GPU}"
        raise UserError(f"JAX cannot start its device: {reason}; {remedy}") from None
    if choice != "cpu" and gpu_is_unused():
        advice = f"an NVIDIA GPU is here but JAX does not use it: {USE_THE_GPU} (or check JAX_PLATFORMS)"
        if choice == "auto":
            print(f"warning: {advice}", file=sys.stderr)
        else:
            raise UserError(advice)
    elif choice == "gpu" and backend != "gpu":
        raise UserError(f"--device gpu: JAX sees no GPU here, only {backend}; leave --device out to run on it")
    if deterministic and backend == "gpu":
        print("deterministic: sums in a fixed order, and kernels not chosen by timing them; updates are slower")
    elif deterministic:
        print(f"deterministic: there is nothing to set, a {backend.upper()} always is")


def gpu_is_unused() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded and JAX runs on the CPU."""
    return not has_accelerator() and _NVIDIA_DRIVER.exists()


def has_accelerator() -> bool:
    """Whether JAX runs on something faster than the CPU."""
    import jax

    return jax.default_backend() != "cpu"


def describe_devices() -> str:
    """For example `16 x NVIDIA H100 80GB HBM3 in 2 processes` or `CPU, 2 cores (AVX-512, AMX)`."""
    import jax

    devices, processes = jax.devices(), f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    if devices[0].platform != "cpu":
        return (f"{len(devices)} x " if len(devices) > 1 else "") + devices[0].device_kind + processes
    sets = instruction_sets()
    described = f"CPU, {os.cpu_count()} cores" + (f" ({', '.join(sets)})" if sets else "")
    return described + (f", as {len(devices)} devices" if len(devices) > 1 else "") + processes


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """What an x86 CPU has for arithmetic on many numbers at once, as far as Linux tells."""
    flags = set(cpuinfo.read_text().split("flags", 1)[-1].split("\n", 1)[0].split()) if cpuinfo.exists() else set()
    vectors = ("AVX-512", "avx512f") if "avx512f" in flags else ("AVX2", "avx2")
    return [name for name, flag in (vectors, ("AMX", "amx_tile")) if flag in flags]


def peak_flops(kind: str | None = None) -> float | None:
    """Dense bfloat16 FLOP/s of all devices together, where the datasheet is known; or of one that JAX calls `kind`."""
    import jax

    if kind is None:
        peak = peak_flops(jax.devices()[0].device_kind)
        return peak and peak * jax.device_count()
    return next((card.bfloat16_flops for card in cards_of_kind(kind).values()), None)


def device_memory() -> int:
    """Bytes that each device has: of an accelerator what JAX may take, of the main memory a CPU's share."""
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit") or main_memory()[1] // jax.local_device_count()


def main_memory(meminfo: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """Bytes of the main memory: available, which only Linux tells (elsewhere all of it), and in all."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = re.search(r"^MemAvailable: *(\d+) kB", meminfo.read_text(), re.MULTILINE) if meminfo.exists() else None
    return 1024 * int(available[1]) if available else total, total


def resolve_dtype(name: Literal["auto", "float32", "bfloat16"], device: Any = None):
    """The dtype of activations and products. `auto` is bfloat16 on an accelerator that multiplies it fast.

    `device` is one of JAX's, or stands for one that is not here (default: the first that JAX has).
    """
    import jax
    import jax.numpy as jnp

    if name != "auto":
        return jnp.dtype(name)
    fast = (device or jax.devices()[0]).platform == "tpu" or nvidia_generation(device) >= AMPERE
    return jnp.dtype(jnp.bfloat16 if fast else jnp.float32)


def nvidia_generation(device: Any = None) -> float:
    """The compute capability of an NVIDIA GPU, such as 9.0, by default that of the one JAX runs on; 0 of others."""
    import jax

    try:
        return float(getattr(device or jax.devices()[0], "compute_capability", 0))
    except ValueError:  # AMD's GPUs have names there
        return 0.0
