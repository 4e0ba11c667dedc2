"""The command for GPUs measures part by part, on a CPU in small; and a trace is read into parts of the model."""

import json
import os
import signal
import time

import pytest

from experiments.measuring import gpu
from experiments.measuring.gpu_parts import trace
from experiments.measuring.gpu_parts.page import goals, write_page
from experiments.measuring.gpu_parts.runs import kill
from experiments.measuring.gpu_parts.task import Task
from experiments.measuring.gpu_parts.trace import Kernel
from experiments.measuring.gpu_parts.worker import read_result, run_part
from experiments.measuring.peers import OURS
from tinygpt_jax.cards import CARDS
from tinygpt_jax.errors import UsageError, UserError


@pytest.fixture
def task(tmp_path):
    return Task(tmp_path, "builtin", updates=2, repeats=1, quick=True, begun=time.time())


def quits_on_the_way(task):
    yield "first", {"row": {"column": 1.0, "spread": (2.0, 1.0, 3.0), "words": "yes"}}
    raise UserError(f"{task.source} is at fault")


def dies_on_the_way(task):
    yield "first", {"row": {"column": 1.0}}
    os.kill(os.getpid(), signal.SIGKILL)


def takes_too_long(task):
    yield "first", {"row": {"column": 1.0}}
    time.sleep(100)


def has_a_bug(task):
    yield "first", {"row": {"column": task.nothing}}


@pytest.mark.parametrize(
    ("part", "error", "kept"),
    [
        (quits_on_the_way, "builtin is at fault", True),
        (dies_on_the_way, "its process ended with exit code -9", True),
        (takes_too_long, "it took more than 10 s and was stopped", True),
        (has_a_bug, "AttributeError: 'Task' object has no attribute 'nothing'", False),
    ],
)
def test_what_a_part_found_before_its_end_is_kept(task, part, error, kept):
    result = run_part(part, 10 if part is takes_too_long else 300, task)
    assert result["error"] == error and list(result["tables"]) == ["first"] * kept
    assert read_result(task.out / "parts" / f"{part.__name__}.json") == result


def test_parts_that_fail_leave_the_others_alone(tmp_path, capsys):
    """Real parts on a small model, of which the second has no stories; all that was found is in one JSON and page."""
    flags = f"--quick --out {tmp_path} --updates 2 --repeats 1 --data {tmp_path}/missing.txt --parts profile runs"
    with pytest.raises(UserError, match=r"^runs failed; .*parts holds what each printed$"):
        gpu.main(flags.split())
    printed = capsys.readouterr().out
    assert "\nprofile: done, " in printed and "\nruns: failed: experiments.train ended with exit code 2: " in printed
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert list(report["parts"]) == ["profile", "runs"]
    tables = report["parts"]["profile"]["tables"]
    assert tables["memory, 2 rows an update"]["XLA's account"]["temporary, GiB"] > 0
    parts = tables["kernels by part, 4 rows an update"]
    for part in ("products of the blocks", "attention", "LayerNorm", "head and loss", "embedding", "optimizer"):
        assert parts[part]["ms/update"] > 0, part
    assert parts["not told"]["share"] < 0.1
    assert 0 < len(tables["the longest kernels, 4 rows an update"]) <= 40
    page = (tmp_path / "gpu.html").read_text()
    assert "kernels by part, 4 rows" in page and "missing.txt: no such file" in page


def test_a_killed_run_ends_as_one_that_was_not(task):
    result = run_part(kill, 600, task)
    assert result["error"] == ""
    (table,) = result["tables"].values()
    assert table["state"] == {"same": "yes"} and "SIGKILL" in table["killed"]["same"]
    assert goals({"kill": result})["killed and resumed: the bits of a run that was not"]["reached"] == "yes"


PROGRAM = """
ENTRY %main {
  %loop_add_fusion.1 = f32[8]{0} fusion(%p), metadata={op_name="jit(f)/GPT.hidden/blocks_0/attention_norm/add"}
  ROOT %custom-call.7 = f32[8]{0} custom-call(%p), metadata={op_name="blocks_3/attention/dot_general" frame=3}
  %gemm_fusion_dot.12 = f32[8]{0} fusion(%p), metadata={op_name="jit(f)/jvp(GPT.loss)/btd,vd->btv/dot_general"}
  %copy.1 = f32[8]{0} copy(%p)
}
"""


def test_kernels_find_their_part_of_the_model():
    """By the instruction that the trace tells, or else by the name that XLA gives its kernels."""
    kernels = [
        Kernel("loop_add_fusion_1", "", 0.0, 0.004),
        Kernel("nvjet_tst_128x256", "custom-call.7", 0.003, 0.002),
        Kernel("gemm_fusion_dot_12", "gemm_fusion_dot.12", 0.006, 0.001),
        Kernel("MemcpyD2D", "copy.1", 0.007, 0.001),
        Kernel("unheard_of", "", 0.009, 0.001),
    ]
    names = trace.op_names(PROGRAM)
    table = trace.by_part(kernels, names, updates=2)
    found = {part: row["ms/update"] for part, row in table.items()}
    assert found == pytest.approx(
        {
            "LayerNorm": 2.0,
            "products of the blocks": 1.0,
            "head and loss": 0.5,
            "copies": 0.5,
            "not told": 0.5,
            "nothing ran": 1.0,  # the first two overlap
            "all": 5.0,
        }
    )
    assert table["all"]["kernels/update"] == 2.5
    (first, row), *_ = trace.longest(kernels, names, updates=2, most=3).items()
    assert first == "1. loop_add_fusion" and row["us each"] == pytest.approx(4000) and row["part"] == "LayerNorm"
    assert "blocks_N/attention_norm" in row["operation"]


def test_words_are_shown_on_the_page_and_not_obeyed(tmp_path):
    part = {"seconds": 1.0, "error": "<i>no</i>", "tables": {"samples": {"<a>": {"story": "<script>", "words": 3}}}}
    report = {"date": "today", "machine": {"GPU": "<b>"}, "goals": goals({}), "parts": {"runs": part}}
    write_page(tmp_path / "gpu.html", report)
    page = (tmp_path / "gpu.html").read_text()
    assert "&lt;script&gt;" in page and "&lt;b&gt;" in page and "&lt;i&gt;no" in page and "&lt;a&gt;" in page
    assert all(word not in page for word in ("<script>", "<b>", "<i>no", "<a>"))


def test_what_was_measured_stands_beside_the_estimate():
    """A product that a library does, of 4,096 rows, and an addition: the first is bound by arithmetic."""
    program = """HloModule m

ENTRY %main (a: bf16[4096,768], b: bf16[768,3072]) -> bf16[4096,3072] {
  %a = bf16[4096,768]{1,0} parameter(0)
  %b = bf16[768,3072]{1,0} parameter(1)
  %product.1 = (bf16[4096,3072]{1,0}, s8[4]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", \
metadata={op_name="blocks_3/feed_forward/dot_general"}, backend_config={"lhs_contracting_dimensions":["1"]}
  ROOT %add.1 = bf16[4096,3072]{1,0} add(%product.1, %product.1), metadata={op_name="jit(f)/GPT.hidden/add"}
}
"""
    card = CARDS["h100"]
    measured = {"products of the blocks": {"ms/update": 0.05}, "all": {"ms/update": 0.1}}
    table = trace.beside_the_estimate(measured, program, {}, card)
    best = 1000 * 2 * 4096 * 768 * 3072 / (0.7 * 989e12)
    assert table["products of the blocks"] == {"measured, ms": 0.05, "at best, ms": pytest.approx(best)}
    assert table["dropout and residuals"]["measured, ms"] == 0.0
    assert table["all"]["measured, ms"] == 0.1 and table["all"]["at best, ms"] > best


def test_goals_are_met_from_above_or_below():
    def found(title, row, **columns):
        return {"tables": {title: {row: columns}}}

    parts = {
        "training": found("training, 256 rows an update", OURS.name, **{"tokens/s": 250_000.0}),
        "startup": found("startup, 32 rows an update", OURS.name, **{"cold, s": 90.0}),
        "decoding": found(
            "decoding", "written, 1 side by side: Hugging Face", **{"ours is faster by": [8.0, 7.0, 9.0]}
        ),
        "deterministic": found("the same run twice with --deterministic", "state", same="NO"),
    }
    table = goals(parts)
    assert table["tokens/s at 256 rows an update"]["ratio"] == 0.5
    assert table["first update, nothing compiled before, s"]["ratio"] == 0.5
    assert table["times Hugging Face, one text"]["ratio"] == 2.0
    assert table["the same bits twice, with --deterministic"]["reached"] == "differ: state"
    assert table["times torch.compile, 32 rows"]["reached"] == "not measured"


@pytest.mark.parametrize(
    ("flags", "kind", "message"),
    [
        ("--updates 0", UsageError, "^--updates 0: must be at least 1"),
        ("--parts", UsageError, "^--parts without a value"),
        ("", UserError, "^no NVIDIA GPU is here .*--quick"),
    ],
)
def test_what_cannot_be_measured_is_refused(flags, kind, message, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    with pytest.raises(kind, match=message):
        gpu.main(flags.split())
