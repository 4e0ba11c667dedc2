"""`tinygpt_jax.estimate`: reading a compiled program, estimating it, and the process that compiles; without a GPU's."""

import dataclasses
import io
import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import presets
from tinygpt_jax.cards import CARDS, card, cards_of_kind
from tinygpt_jax.config import Config
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.estimate import compiling, estimation
from tinygpt_jax.estimate.compiling import Compiled, Request, compile_for, state_bytes
from tinygpt_jax.estimate.estimation import Estimate, account, changes, first_that_fits
from tinygpt_jax.estimate.program import Array, read_program
from tinygpt_jax.estimate.roofline import Part, exchange_seconds, kernel_seconds, part_of
from tinygpt_jax.estimate.target import target_description
from tinygpt_jax.estimate.traffic import kernels_and_exchanges

# As XLA writes it, cut to what is read. Every kernel has a size that tells it apart.
TEXT = (Path(__file__).parent / "fixtures" / "program.hlo").read_text()
GIB = 2**30


@pytest.fixture(scope="module")
def found():
    kernels, exchanges = kernels_and_exchanges(read_program(TEXT), {"my_kernel": 7.0})
    return {kernel.instruction.name: kernel for kernel in kernels}, exchanges


def test_reading_the_text():
    program = read_program(TEXT)
    assert program.entry == "main" and program.aliases == {0: 1, 1: 0}
    fusion = program.computations["main"]["p"]
    assert fusion.result == (Array("bf16", (8, 32)), Array("f32", (8,))) and fusion.called == ("product",)
    assert program.computations["main"]["t"].op_name == "state"
    assert {inner.opcode for inner in program.inside(fusion)} == {"parameter", "dot", "reduce", "tuple", "add"}
    assert Array("pred", (3,)).bytes == 3 and Array("f8e4m3fn", (3,)).bytes == 3 and Array("s4", (3,)).bytes == 2
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("HloModule nothing\n")


@pytest.mark.parametrize(
    ("name", "moved", "flops", "times"),
    [
        ("s", 80 + 4 + 80, 0, 1),  # two rows, where they begin, and two rows written
        ("u", 20 + 4 + 20, 0, 1),  # a row read, and written in place
        ("p", 256 + 1024 + 512 + 32, 2 * 8 * 16 * 32, 1),
        ("library", 256 + 1024 + 1024, 2 * 8 * 16 * 32, 1),  # without the scratch memory
        ("by_hand", 3 * 256, 7, 1),
        ("twice", 3 * 400, 0, 1),  # of the open loop, which comes after the one of 30 rounds
        ("negated", 2 * 400, 0, 1),
        ("end", 2 * 400, 0, 1),
    ],
)
def test_what_a_kernel_moves_and_computes(found, name, moved, flops, times):
    kernel = found[0][name]
    assert (kernel.bytes, kernel.flops, kernel.times) == (moved, flops, times)


def test_loops_and_branches():
    program = read_program(TEXT)
    rounds = [kernel for kernel in kernels_and_exchanges(program)[0] if kernel.instruction.name == "twice"]
    assert [kernel.times for kernel in rounds] == [30, 1]  # where the rounds are not known, one
    names = {kernel.instruction.name for kernel in kernels_and_exchanges(program)[0]}
    assert "negated" in names and "same" not in names


def test_what_devices_exchange(found):
    assert [(x.kind, x.bytes, x.devices) for x in found[1]] == [
        ("all-reduce", 400, 4),
        ("all-gather", 3200, 8),
        ("reduce-scatter", 400, 2),
    ]
    assert [x.sent for x in found[1]] == [2 * 400 * 3 / 4, 3200 * 7 / 8, 400 / 2]
    assert exchange_seconds(found[1][0], card("h100")) == pytest.approx(600 / (0.85 * 18 * 25e9))


def test_a_program_that_jax_compiles_here():
    """The text of this jaxlib, for its CPU."""

    def loss(x, w):
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    text = jax.jit(jax.grad(loss, 1)).lower(jnp.ones((64, 32)), jnp.ones((32, 128))).compile().as_text()
    program = read_program(text)
    kernels, exchanges = kernels_and_exchanges(program)
    assert kernels and exchanges == []
    sizes = {array for i in program.all_instructions() for array in i.result}
    assert Array("f32", (64, 128)) in sizes and Array("f32", (32, 128)) in sizes


def test_a_kernel_takes_as_long_as_its_bytes_or_its_products(found):
    product = found[0]["p"]
    assert kernel_seconds(product, card("h100")) == pytest.approx(1824 / (0.85 * 3.352e12))
    busy = dataclasses.replace(product, flops=1e12)
    assert kernel_seconds(busy, card("h100")) == pytest.approx(1e12 / (0.7 * 989e12))
    assert kernel_seconds(dataclasses.replace(busy, dtype="f32"), card("t4")) == pytest.approx(1e12 / (0.7 * 8.1e12))


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        ("jit(train_step)/jvp(GPT.loss)/GPT.hidden/GPT._embed/gather", "embedding"),
        ("jit(train_step)/transpose(jvp(GPT.loss))/GPT.hidden/blocks_1/attention_norm/reduce_sum", "LayerNorm"),
        ("jit(train_step)/jvp(GPT.loss)/GPT.hidden/final_norm/mul", "LayerNorm"),
        ("jit(train_step)/jvp(GPT.loss)/GPT.hidden/blocks_0/attention/dot_general", "products of the blocks"),
        ("jit(f)/GPT.hidden/blocks_11/feed_forward/ri,ro->io/dot_general", "products of the blocks"),
        ("jit(f)/GPT.hidden/blocks_0/attention/...qe,...ke->...qk/dot_general", "attention"),
        ("jit(f)/GPT.hidden/blocks_0/attention/_forward_kernel/pallas_call", "attention"),
        ("jit(f)/GPT.hidden/blocks_0/feed_forward/max", "feed-forward: activation, biases"),
        ("jit(train_step)/jvp(GPT.loss)/GPT.hidden/blocks_0/jit(_where)/select_n", "dropout and residuals"),
        ("jit(train_step)/jvp(GPT.loss)/btv,vd->btd/dot_general", "head and loss"),
        ("jit(_write)/while/body/GPT.decode/GPT.logits/dot_general", "head and loss"),
        ("jit(train_step)/reduce_sum", "optimizer"),
        ("", "optimizer"),
    ],
)
def test_where_a_kernel_belongs(op_name, part):
    assert part_of(op_name, "optimizer") == part


def test_cards():
    assert card("H100").bandwidth == 3.352e12
    assert list(cards_of_kind("NVIDIA A100-SXM4-80GB")) == ["a100", "a100-80"]
    assert cards_of_kind("NVIDIA GeForce GTX 1080") == {}
    assert CARDS["a100"].float32_flops == 156e12 and CARDS["t4"].float32_flops == 8.1e12
    assert CARDS["h100"].exchange_rate == 450e9 and CARDS["t4"].exchange_rate == 2**34
    assert "memory_bandwidth: 320000000000 " in target_description(card("t4"))


def test_the_state_is_three_numbers_a_parameter():
    config = presets.get("tinystories").config
    assert state_bytes(config) == pytest.approx(12 * config.model.matrix_parameters, rel=2e-3)


MANY_ROWS = Request("t4", presets.get("tinystories-modern").config.to_json(), devices=2)


def estimated(request, seen):
    """As if the rows of a device at a time were all that takes memory: a quarter of it with `remat`."""
    training = json.loads(request.config)["training"]
    seen.append(training)
    rows = training["batch_size"] // request.devices // training["gradient_accumulation"]
    return Estimate(0, rows * GIB // (4 if training["remat"] else 1), {"all": Part(1, 1.0, 1.0, 1.0)}, {}, 0.0, 0.0)


@pytest.mark.parametrize(
    ("limit", "flags"),
    [
        (33, "--remat"),
        (17, "--gradient-accumulation 8"),
        (2, "--gradient-accumulation 64"),
        (0.6, "--remat --gradient-accumulation 64"),
        (0.3, "--batch-size 2 --remat"),
        (0.1, None),
    ],
)
def test_the_first_change_that_fits(monkeypatch, limit, flags):
    seen, told = [], []
    monkeypatch.setattr(estimation, "estimate", partial(estimated, seen=seen))
    change = first_that_fits(MANY_ROWS, limit * GIB, told.append)
    assert (change and change[0]) == flags and len(told) == len(seen)


def test_changes_keep_to_what_a_run_can_have():
    config = presets.get("tinystories").config
    training = dataclasses.replace(config.training, batch_size=6, remat=True, gradient_accumulation=2)
    request = Request("t4", dataclasses.replace(config, training=training).to_json())
    found = dict(changes(request))
    assert list(found) == ["--batch-size 3 --remat"]  # six rows divide in no more than two, by halves


def test_a_state_in_parts_is_tried_before_fewer_rows():
    found = dict(changes(dataclasses.replace(MANY_ROWS, devices=64)))
    names = list(found)
    place = names.index("--mesh fsdp=8 --remat")
    assert names[place + 1].startswith("--batch-size 128") and names[place - 1].startswith("--remat --gradient")
    changed = found["--mesh fsdp=8 --remat"]
    assert changed.mesh == "fsdp=8" and Config.from_json(changed.config).training.remat
    assert "--mesh fsdp=8 --remat" in dict(changes(dataclasses.replace(MANY_ROWS, devices=8, mesh="fsdp=4")))
    cut_already = dataclasses.replace(MANY_ROWS, devices=16, mesh="fsdp=8")
    assert not [flags for flags in dict(changes(cut_already)) if "mesh" in flags]
    assert {request.mesh for request in dict(changes(cut_already)).values()} == {"fsdp=8"}


def test_a_state_in_parts_takes_a_part_of_the_memory():
    """All but the vectors, and matrices of which no axis divides: over 512 devices, those that have none of 3072."""
    config = presets.get("tinystories").config
    whole = state_bytes(config)
    assert state_bytes(config, 64, "data=64") == whole
    assert whole / 8 < state_bytes(config, 64, "fsdp=8") < 1.01 * whole / 8
    left_whole = 12 * (50_257 * 768 + config.model.n_layers * 4 * 768**2)
    assert state_bytes(config, 512, "fsdp=512") == pytest.approx(left_whole, rel=0.01)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(compiling, "compiler_is_installed", lambda: True)


REQUEST = Request("t4", presets.get("tinystories").config.to_json())


def test_a_compiler_that_is_killed_is_one_line(installed, monkeypatch):
    def killed(command, **_):
        return subprocess.CompletedProcess(command, -signal.SIGFPE, "", "first\nlast words\n")

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(UserError, match="the compiler ended by SIGFPE: last words"):
        compile_for(REQUEST)


def test_a_compiler_that_hangs_is_stopped(installed):
    with pytest.raises(UserError, match="compiling for t4 took more than 0 s"):
        compile_for(REQUEST, timeout=0.2)


@pytest.mark.parametrize(
    ("raised", "error", "said"),
    [
        (UsageError("batch_size 3: must be"), UsageError, "batch_size 3"),
        (RuntimeError("INTERNAL: no such\nthing"), UserError, "cannot compile for t4: RuntimeError: INTERNAL: no such"),
        (RuntimeError("libdevice not found at ./x"), compiling.NoCompilerError, "needs CUDA's compiler, nvcc: pip"),
    ],
)
def test_what_the_other_process_raises_is_raised_here(installed, monkeypatch, raised, error, said):
    def fails(request):
        raise raised

    def other_process(command, *, input, **_):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO(input))
            patch.setattr(sys, "argv", command[2:])
            compiling.main()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(compiling, "_compile", fails)
    monkeypatch.setattr(subprocess, "run", other_process)
    with pytest.raises(error, match=said) as caught:
        compile_for(REQUEST)
    assert type(caught.value) is error


def test_flops_of_a_kernel_written_by_hand():
    from jax.experimental import pallas as pl

    def kernel(a, b, out):
        out[...] = a[...] @ b[...]

    def call(a, b):
        cost = pl.CostEstimate(flops=2 * 8 * 16 * 32, bytes_accessed=0, transcendentals=0)
        like = jax.ShapeDtypeStruct((8, 32), jnp.float32)
        return pl.pallas_call(kernel, out_shape=like, name="mine", cost_estimate=cost)(a, b)

    traced = jax.jit(jax.checkpoint(call)).trace(jnp.ones((8, 16)), jnp.ones((16, 32)))
    assert dict(compiling.pallas_kernels(traced.jaxpr.jaxpr)) == {"mine": 2 * 8 * 16 * 32}


def test_all_that_runs_is_counted():
    found = account(Compiled(TEXT, 1, 2, {}, 0.0), Request("h100", ""))
    assert found.total.kernels == 5 + 30 + 1 + 1 + 1  # fusions and calls, loops, a branch, a copy
    sent = found.total_sent
    assert (sent.times, sent.bytes) == (3, 2 * 400 * 3 / 4 + 3200 * 7 / 8 + 400 / 2)
    assert 0 < found.waiting_seconds <= sent.seconds
    assert found.seconds == pytest.approx(found.total.seconds + found.waiting_seconds)
    assert found.seconds_with_launches == pytest.approx(found.seconds + 1.5e-6 * (38 + 3))
