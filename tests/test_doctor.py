"""`experiments.doctor`: nothing to complain of on a sound machine, and each fault named with its remedy."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import optax
import pytest

from experiments import doctor
from tinygpt_jax import devices
from tinygpt_jax.errors import UserError
from tinygpt_jax.training import checkpoint


@pytest.fixture
def examine(monkeypatch, tmp_path, capsys):
    """Run the command here, in a cache folder of the test; returns its exit code and its problems by name."""
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(devices, "use_device", lambda device: None)

    def examine(*only):
        """Only the checks of these names; all of them if none is named."""
        for name in {"versions", "memory", "folders", "self_test"} - set(only) if only else ():
            monkeypatch.setattr(doctor, f"_{name}", lambda: iter(()))
        code = 0
        try:
            doctor.main(["--json"])
        except SystemExit as stop:
            code = stop.code
        report = json.loads(capsys.readouterr().out)
        problems = {finding["name"]: finding for finding in report["findings"] if finding["problem"]}
        assert len(problems) == report["problems"] and all(finding["remedy"] for finding in problems.values())
        return code, problems

    return examine


def test_a_sound_machine_is_in_order(tmp_path, monkeypatch):
    """As a user starts it: exit code 0, and a page that a bug report can hold."""
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = subprocess.run([sys.executable, "-m", "experiments.doctor"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("everything is in order\n")
    for name in ("python", "jaxlib", "device", "memory", "prepared stories", "training", "checkpoint"):
        assert f"ok       {name} " in done.stdout


def test_a_missing_package(examine, monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "grain":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    code, problems = examine("versions")
    assert code == 1 and set(problems) == {"grain"} and "pip install" in problems["grain"]["remedy"]


def test_a_gpu_that_is_not_used(examine, monkeypatch):
    monkeypatch.setattr(devices, "gpu_is_unused", lambda: True)
    code, problems = examine("device")
    assert code == 1 and "[cuda12]" in problems["device"]["remedy"]


def test_a_gpu_is_compared_with_its_datasheet(monkeypatch):
    monkeypatch.setattr(devices, "use_device", lambda device: None)
    monkeypatch.setattr(devices, "has_accelerator", lambda: True)
    monkeypatch.setattr(devices, "device_memory", lambda: 64 * 10**9)
    said = []
    for kind in ("2 x NVIDIA A100-SXM4-80GB", "NVIDIA GeForce GTX 1080"):
        monkeypatch.setattr(devices, "describe_devices", lambda kind=kind: kind)
        said.append({finding.name: finding.value for finding in doctor._device("auto")}["card"])
    shares = "312 TFLOP/s and 2.04 TB/s by the datasheet, 79.3 GiB, of which JAX may take 75%"
    assert said[0] == f"{shares}; experiments.plan --gpu a100-80 estimates a run"
    assert said[1] == "NVIDIA GeForce GTX 1080 is none that experiments.plan knows"


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (RuntimeError("driver mismatch\nand more"), "RuntimeError: driver mismatch"),
        (UserError("JAX cannot start it; try --device cpu"), "JAX cannot start it"),
    ],
)
def test_a_device_that_does_not_start(examine, monkeypatch, error, problem):
    """A failure nobody thought of is a finding too, not a traceback; and one finding, not one of all that follows."""

    def broken(device):
        raise error

    monkeypatch.setattr(devices, "use_device", broken)
    monkeypatch.setattr(doctor, "_self_test", lambda: (pytest.fail("tried without a device") for _ in "once"))
    code, problems = examine("device", "self_test")
    assert code == 1 and set(problems) == {"device"} and problems["device"]["problem"] == problem


def test_little_memory(examine, monkeypatch):
    monkeypatch.setattr(devices, "main_memory", lambda: (10**8, 10**10))
    code, problems = examine("memory")
    assert code == 1 and "0.1 GiB of 9.3 GiB" in problems["memory"]["value"]


def test_a_full_disk_and_a_folder_that_cannot_be_made(examine, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**8))
    assert set(examine("folders")[1]) == {"prepared stories", "compiled programs", "temporary files"}
    (tmp_path / "cache" / "compiled").rmdir()
    (tmp_path / "cache" / "compiled").write_text("a file")
    code, problems = examine("folders")
    assert code == 1 and "cannot be written to" in problems["compiled programs"]["problem"]


def test_training_that_does_not_learn(examine, monkeypatch):
    monkeypatch.setattr("tinygpt_jax.training.parts.make_optimizer", lambda config, steps: optax.set_to_zero())
    code, problems = examine("self_test")
    assert code == 1 and problems["training"]["problem"] == "the loss did not fall"


def test_a_checkpoint_that_comes_back_changed(examine, monkeypatch):
    real = checkpoint.restore_state
    monkeypatch.setattr(checkpoint, "restore_state", lambda *args: real(*args)._replace(step=1))
    code, problems = examine("self_test")
    assert code == 1 and "not what was saved" in problems["checkpoint"]["problem"]
