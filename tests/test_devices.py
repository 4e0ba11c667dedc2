"""Choosing a device: what is missing is said, and deterministic means what it says."""

import os
import subprocess
import sys

import jax
import pytest

from tinygpt_jax import devices
from tinygpt_jax.errors import UserError


@pytest.fixture(autouse=True)
def no_lasting_change(monkeypatch):
    """Choosing a device sets options for the whole process."""
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")


def test_a_gpu_that_is_not_used_is_named_and_refused_if_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(devices, "gpu_is_unused", lambda: True)
    devices.use_device("auto")
    assert capsys.readouterr().err.startswith("warning: an NVIDIA GPU is here but JAX does not use it: pip install")
    with pytest.raises(UserError, match="an NVIDIA GPU is here but JAX does not use it"):
        devices.use_device("gpu")
    devices.use_device("cpu")
    assert capsys.readouterr().err == ""


def test_asking_for_a_gpu_where_there_is_none():
    with pytest.raises(UserError, match="--device gpu: JAX sees no GPU here, only cpu"):
        devices.use_device("gpu")


def test_a_device_that_is_not_there_is_one_line(tmp_path):
    """JAX says nothing in an AssertionError. A cache folder that cannot be made is no reason to stop."""
    code = "from tinygpt_jax.devices import use_device; use_device()"
    environment = {**os.environ, "JAX_PLATFORMS": "cuda", "TINYGPT_CACHE": "/proc/none"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    said = "JAX_PLATFORMS=cuda asks for a device that is not here; unset the variable, give --device cpu, or where"
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA B200", 2250),
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A40", None),
        ("cpu", None),
    ],
)
def test_a_peak_rate_is_of_exactly_this_device(kind, tera):
    """By its datasheet, dense; of an unknown device nothing is said."""
    assert devices.peak_flops(kind) == (tera and tera * 1e12)


@pytest.mark.parametrize(
    ("cpuinfo", "sets"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse avx avx2 avx512f avx512bw amx_tile\nbugs\t: none\n", ["AVX-512", "AMX"]),
        ("flags : fpu avx2\nbugs : avx512f\n", ["AVX2"]),
        ("flags : fpu sse2\n", []),
        ("Features : fp asimd\n", []),
        (None, []),
    ],
)
def test_instruction_sets(tmp_path, cpuinfo, sets):
    if cpuinfo:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert devices.instruction_sets(tmp_path / "cpuinfo") == sets


def test_main_memory(tmp_path):
    """Guards: macOS, which has no /proc and does not know how much is available."""
    (tmp_path / "meminfo").write_text("MemTotal:       24000 kB\nMemFree: 1 kB\nMemAvailable:   20000 kB\n")
    available, total = devices.main_memory(tmp_path / "meminfo")
    assert available == 20_480_000 and devices.main_memory(tmp_path / "none") == (total, total)


@pytest.mark.parametrize(
    ("backend", "says"), [("gpu", "updates are slower"), ("cpu", "nothing to set, a CPU always is")]
)
def test_deterministic_says_what_it_does(monkeypatch, capsys, backend, says):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    devices.use_device("auto", deterministic=True)
    assert says in capsys.readouterr().out
    assert devices.os.environ["XLA_FLAGS"].split() == [
        "--xla_cpu_enable_fast_math=false",
        "--xla_gpu_deterministic_ops=true",
    ]


def test_xla_knows_the_flag_of_deterministic():
    """An unknown flag ends the process."""
    code = "from tinygpt_jax.devices import use_device; use_device('cpu', True); import jax; jax.numpy.ones(2).sum()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("system", "tunables", "driver", "platforms", "restarts"),
    [
        ("always [madvise] never", None, False, "", True),
        ("[always] madvise never", None, False, "", False),
        ("always madvise [never]", None, False, "", False),
        ("always [madvise] never", "glibc.malloc.check=3", False, "", False),
        (None, None, False, "", False),
        ("always [madvise] never", None, True, "", False),
        ("always [madvise] never", None, True, "cpu", True),
        ("always [madvise] never", None, False, "tpu", False),
    ],
)
def test_a_program_starts_anew_only_where_that_brings_huge_pages(
    monkeypatch, tmp_path, system, tunables, driver, platforms, restarts
):
    """Starting again for ever; somebody's own settings lost; a file that other systems do not have; for a GPU."""
    monkeypatch.setattr(devices, "_NVIDIA_DRIVER", tmp_path if driver else tmp_path / "no driver")
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    file, started = tmp_path / "enabled", []
    if system:
        file.write_text(system)
    monkeypatch.setattr(devices, "_HUGE_PAGES", file)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if tunables:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.train", "--prompt", "a b"])
    monkeypatch.setattr(devices.os, "execv", lambda *arguments: started.append(arguments))
    devices.restart_with_huge_pages()
    devices.restart_with_huge_pages()
    command = (sys.executable, [sys.executable, "-m", "experiments.train", "--prompt", "a b"])
    assert started == [command] * restarts
    expected = "glibc.malloc.hugetlb=1" if restarts else tunables
    assert devices.os.environ.get("GLIBC_TUNABLES") == expected


# Counts what the compilation cache had and had not, from the start of a process to the end of its first update.
FIRST_UPDATE = """
import jax
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
from experiments.measuring.peers.ours import Trainer
from experiments.measuring.peers.turns import random_batch
from tinygpt_jax.config import Config, ModelConfig, TrainingConfig
model = ModelConfig(vocab_size=64, context_length=16, n_layers=1, n_heads=2, d_model=16, d_ff=32)
config = Config(model=model, training=TrainingConfig(batch_size=4))
Trainer(config).update(*random_batch(config, 0)).block_until_ready()
print(events.count("cache_misses"), events.count("cache_hits"))
"""


def test_a_second_start_compiles_nothing_anew(tmp_path):
    """Training finds its programs, the update among them, in the user's cache folder without any setting."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {
        "TINYGPT_CACHE": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # the tiny model compiles in less than a second
    }
    counts = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_UPDATE], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        counts.append(tuple(map(int, done.stdout.split())))
    (misses, _), (misses_again, hits_again) = counts
    assert misses >= 2 and (misses_again, hits_again) == (0, misses)
    assert list((tmp_path / "compiled").glob("jit_train_step-*"))
