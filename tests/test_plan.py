"""`experiments.plan`: from flags to a page, here compiled for this CPU in place of a card."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments import plan, presets
from tinygpt_jax.cards import CARDS
from tinygpt_jax.devices import USE_THE_GPU
from tinygpt_jax.errors import UsageError
from tinygpt_jax.estimate import compiling, estimation
from tinygpt_jax.estimate.compiling import Compiled
from tinygpt_jax.estimate.estimation import Estimate
from tinygpt_jax.estimate.roofline import LAUNCH_SECONDS, Part
from tinygpt_jax.estimate.summary import page
from tinygpt_jax.training.sharding import make_mesh

GIB = 2**30
SMALL = "--n-layers 1 --d-model 32 --n-heads 2 --d-ff 64 --batch-size 4 --steps 100".split()


@pytest.fixture
def here(monkeypatch):
    """Compile for this CPU in place of the card, as the process of its own would."""

    def compile_here(request):
        with monkeypatch.context() as patch:
            patch.setattr(compiling, "_mesh", lambda request: make_mesh())
            return compiling._compile(request)

    monkeypatch.setattr(estimation, "compile_for", compile_here)


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(compiling, "PLUGINS", ())


def test_an_update_from_the_flags_to_the_page(here, capsys):
    plan.main(["--gpu", "a100", *SMALL, "--json"])
    document = json.loads(capsys.readouterr().out)
    total, best = document["total"], document["best"]
    assert total["seconds"] == pytest.approx(sum(part["seconds"] for part in document["parts"].values()))
    assert best["tokens_per_second"] == pytest.approx(4 * 128 / total["seconds"])
    launches = document["with_launches"]["seconds"] - best["seconds"]
    assert launches == pytest.approx(LAUNCH_SECONDS * total["kernels"])
    assert document["run"]["updates"] == 100 and document["fits"]
    assert document["memory"]["jax_takes"] == round(0.75 * CARDS["a100"].memory)
    shown = "\n".join(page(document))
    assert shown.startswith("training, preset tinystories, on 1 x A100: compiled for it and estimated, not run\n")
    for words in ("the state ", "at most ", "it fits", "products of the blocks ", "at best ", "100 updates"):
        assert words in shown


def test_a_mesh_of_many_devices_from_the_flags_to_the_page(here, monkeypatch, capsys):
    """What each sends is of a text that tells of 64 devices: this process has one."""
    text = (Path(__file__).parent / "fixtures" / "program.hlo").read_text()
    text = text.replace("replica_groups=[1,8]<=[8]", "replica_groups=[8,8]<=[8,8]T(1,0)")  # one card of each machine
    monkeypatch.setattr(estimation, "compile_for", lambda request: Compiled(text, GIB, 2 * GIB, {}, 1.0))
    flags = [*SMALL, "--devices", "64", "--batch-size", "64", "--mesh", "data=8,fsdp=8"]
    plan.main([*flags, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["mesh"] == {"data": 8, "fsdp": 8}
    gathered, sent = document["sent"]["all-gather"], document["total_sent"]
    assert gathered["between_machines"] == gathered["bytes"] == sent["between_machines"] == 3200 * 7 / 8
    waiting = document["waiting_seconds"]
    assert 0 < waiting <= sent["seconds"]
    assert document["best"]["seconds"] == pytest.approx(document["total"]["seconds"] + waiting)
    shown = "\n".join(page(document))
    assert shown.startswith("training, preset tinystories, on 64 x H100 in 8 machines (data=8, fsdp=8): compiled for")
    for words in ("each device sends ", "all-reduce ", "all-gather ", "reduce-scatter ", "have to wait for "):
        assert words in shown


def test_a_state_that_fits_in_more_parts_only_is_said_at_once(without_compiler, capsys):
    seven_billion = "--n-layers 32 --d-model 4096 --n-heads 32 --d-ff 16384 --batch-size 64".split()

    def said(*flags):
        plan.main([*seven_billion, *flags, "--json"])
        document = json.loads(capsys.readouterr().out)
        assert not document["compiled"]
        return document["problem"], document["memory"]["held"]

    problem, held = said("--devices", "8")
    assert problem == "its state alone, 74.3 GiB on each device, does not fit: cut it with --mesh fsdp=2"
    assert held / GIB == pytest.approx(74.3, abs=0.1)
    problem, held = said("--devices", "8", "--mesh", "fsdp=2", "--gpu", "l4")
    assert problem.startswith("its state alone, 37.2 GiB on each device, does not fit: cut it with --mesh fsdp=8")
    assert held / GIB == pytest.approx(37.2, abs=0.1)
    problem, held = said("--devices", "8", "--mesh", "fsdp=8")
    assert problem.startswith("compiling for") and held / GIB == pytest.approx(9.3, abs=0.1)  # it fits in eight parts
    assert "50.3 GiB, does not" in said("--matrices", "muon", "--gpu", "a100")[0]  # one mean in place of two
    assert said()[0] == "its state alone, 74.3 GiB, does not fit: take fewer --n-layers, or less --d-model"


def test_decoding_from_the_flags_to_the_page(here, capsys):
    plan.main(["--what", "generate", "--rows", "3", *SMALL])
    shown = capsys.readouterr().out
    assert shown.startswith("generating, preset tinystories, on 1 x H100") and "3 texts at a time" in shown
    assert "choosing the token" in shown and "updates" not in shown


def test_without_the_compiler_what_needs_none_is_said(without_compiler, capsys):
    plan.main(["--gpu", "h100", "--devices", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"not compiled; compiling for an NVIDIA GPU needs JAX's part for it: {USE_THE_GPU}")
    assert any(line.split() == ["the", "state", "1.38"] for line in lines)  # 12 bytes for each of 124 M
    assert any("10,4" in line and "755 MFLOP a token" in line for line in lines)  # 8 x 989 TFLOP/s
    plan.main(["--json"])
    document = json.loads(capsys.readouterr().out)
    assert not document["compiled"] and "pip install" in document["problem"] and "parts" not in document


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpu", "gtx1080"], "unknown GPU 'gtx1080'; there are: b200, h200, h100"),
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--devices", "0"], "devices 0: must be 1 to 8, the cards of one machine, or a multiple of 8 up to 512"),
        (["--devices", "12"], "devices 12: must be"),
        (["--devices", "1024"], "devices 1024: must be"),
        (
            ["--devices", "8", "--mesh", "data=3"],
            "mesh data=3: data x fsdp must be the number of devices",
        ),
        (["--devices", "64"], "batch_size 32: must be a multiple of gradient_accumulation 1 x 64 devices"),
        (["--rows", "0"], "rows 0: must be at least 1"),
        (["--gpus", "2"], "--gpus"),
    ],
)
def test_what_can_never_work_is_refused(flags, said):
    with pytest.raises(UsageError, match=said):
        plan.main(flags)


def test_how_long_a_run_is(tmp_path):
    reference, modern = (presets.get(name).config for name in ("tinystories", "tinystories-modern"))
    config, updates, length = plan.workload(reference)
    assert config == reference and updates == round(5 * 2_119_719 / 32) and "5 epochs of 2,119,719 stories" in length
    assert plan.workload(modern)[1] == round(2 * 474_000_000 / 128 / 256)
    laptop = plan.workload(presets.get("laptop").config)
    assert laptop[0].model.vocab_size == 5257 and laptop[1] == 4400
    stories = tmp_path / "stories.txt"
    stories.write_text("<|endoftext|>".join(f"The cat saw {number} dogs." for number in range(200)))
    data = dataclasses.replace(reference.data, source=str(stories), cache_dir=str(tmp_path), vocabulary="compact")
    config, updates, length = plan.workload(dataclasses.replace(reference, data=data))
    assert config.model.vocab_size < 1000 and updates == round(5 * int(length.split(" of ")[1].split()[0]) / 32)


def test_what_does_not_fit_is_told_with_its_remedy(monkeypatch, capsys):
    large, small = (Estimate(1, size * GIB, {"all": Part(1, 1.0, 1.0, 1.0)}, {}, 0.0, 0.0) for size in (70, 40))
    monkeypatch.setattr(plan, "estimate", lambda request: large)
    monkeypatch.setattr(plan, "first_that_fits", lambda request, limit, tell: ("--remat", small))
    plan.main(SMALL)
    out, err = capsys.readouterr()
    assert "it does not fit: with --remat it does, 40.0 GiB at most, 1.00 x the time" in out
    assert "70.0 GiB at most, which does not fit; trying" in err
    monkeypatch.setattr(plan, "first_that_fits", lambda request, limit, tell: None)
    plan.main(SMALL)
    assert "set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in capsys.readouterr().out
    plan.main([*SMALL, "--gpu", "t4"])
    assert "no setting that was tried makes it fit" in capsys.readouterr().out
