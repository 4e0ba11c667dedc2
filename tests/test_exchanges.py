"""What devices exchange: read from a program's text, and of the update that is compiled here for four."""

import dataclasses
import json
import os
import subprocess
import sys
from math import prod
from unittest import mock

import pytest

from tinygpt_jax.cards import card
from tinygpt_jax.errors import UserError
from tinygpt_jax.estimate.exchanges import Exchange, exchange
from tinygpt_jax.estimate.program import Array, Instruction
from tinygpt_jax.estimate.roofline import by_kind, exchange_seconds, waiting_seconds
from tinygpt_jax.estimate.traffic import Kernel, Wait

GIVEN = Instruction("x", "parameter", (Array("f32", (100,)),), (), "", False)


def operation(opcode, attributes, result=GIVEN.result):
    return exchange(Instruction("y", opcode, result, ("x",), attributes, False), {"x": GIVEN}, 3, devices=16)


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups={}, x", tuple(range(16))),
        ("replica_groups=[4,4]<=[16]", (0, 1, 2, 3)),
        ("replica_groups=[8,2]<=[2,8]T(1,0)", (0, 8)),
        ("replica_groups=[2,8]<=[2,2,4]T(1,0,2), x", (0, 1, 2, 3, 8, 9, 10, 11)),
        ("replica_groups=mesh['data'=4,'fsdp'=4] {'fsdp'}", (0, 1, 2, 3)),
        ("channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0'}, use_global", (0, 4, 8, 12)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=4] {'a', 'c'}", (0, 1, 2, 3, 8, 9, 10, 11)),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=8], device_ids=([8,2]T(1,0)) {'b'}, x", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'b'}", tuple(range(0, 16, 2))),
    ],
)
def test_who_exchanges_with_whom(attributes, group):
    assert operation("all-reduce", attributes).group == group


@pytest.mark.parametrize("attributes", ["replica_groups=mesh['a'=16] {'a':(2)8}", "replica_groups=@of_another_xla", ""])
def test_another_way_to_write_it_is_said_and_not_guessed(attributes):
    with pytest.raises(UserError, match="cannot read in the compiled program which devices"):
        operation("all-reduce", attributes)


def test_what_each_device_sends():
    """In rings; a permutation sends all."""
    groups = "replica_groups={{0,1,2,3}}"
    assert operation("all-reduce", groups).sent == 2 * 400 * 3 / 4
    assert operation("all-gather-start", groups, (Array("f32", (400,)),)).sent == 1600 * 3 / 4
    started = (Array("f32", (100,)), Array("f32", (25,)))  # what goes in, and what comes out
    assert operation("reduce-scatter-start", groups, started).sent == 400 * 3 / 4
    assert operation("collective-permute", "source_target_pairs={{0,1},{1,0}}").sent == 400


@pytest.mark.parametrize(
    ("group", "share"),
    [
        (range(8), 0),
        (range(8, 16), 0),
        (range(16), 1 / 8),  # two machines, each with eight ways out
        (range(0, 64, 8), 1),  # one card of each
        ([0, 4, 8, 12], 1 / 2),
    ],
)
def test_how_much_of_it_goes_to_other_machines(group, share):
    found = Exchange(GIVEN, "all-reduce", 1000, tuple(group), 1)
    assert found.sent_between_machines == pytest.approx(share * found.sent)
    inside, between = (1 - share) * found.sent / 450e9, share * found.sent / 50e9
    assert exchange_seconds(found, card("h100")) == pytest.approx(max(inside, between) / 0.85)


def test_a_permutation_leads_out_of_a_machine_if_one_pair_does():
    assert operation("collective-permute", "source_target_pairs={{0,1},{7,8},{8,0}}").sent_between_machines == 400
    assert operation("collective-permute", "source_target_pairs={{0,7},{7,0}}").sent_between_machines == 0


def test_exchanges_of_a_kind_are_added_up():
    exchanges = [operation("all-reduce", "replica_groups={{0,8}}"), operation("all-reduce", "replica_groups={{0,1}}")]
    found = by_kind([*exchanges, operation("all-gather", "replica_groups={{0,1}}")], card("h100"))
    assert list(found) == ["all-reduce", "all-gather"]
    sent = found["all-reduce"]
    assert (sent.times, sent.bytes, sent.between_machines) == (6, 6 * 400, 3 * 400)
    assert sent.seconds == pytest.approx(3 * sum(exchange_seconds(x, card("h100")) for x in exchanges))


def kernel(milliseconds, times=1):
    return Kernel(GIVEN, milliseconds * 1e-3 * 0.85 * card("h100").bandwidth, 0.0, "", times)


def exchanging(name, milliseconds, opcode="all-gather-start", times=1):
    """Of two cards of one machine, which send half of what they get."""
    size = 2 * milliseconds * 1e-3 * 0.85 * card("h100").exchange_rate
    return Exchange(dataclasses.replace(GIVEN, name=name, opcode=opcode), "all-gather", round(size), (0, 1), times)


@pytest.mark.parametrize(
    ("found", "milliseconds"),
    [
        ([kernel(5), exchanging("x", 3, "all-gather"), kernel(5)], 3),  # one that nothing runs beside
        ([exchanging("x", 3), kernel(5), Wait("x"), kernel(5)], 0),
        ([exchanging("x", 7), kernel(5), Wait("x"), kernel(5)], 2),
        ([exchanging("x", 3), exchanging("y", 3), kernel(5), Wait("x"), Wait("y"), kernel(5)], 1),  # y after x
        ([kernel(5), exchanging("x", 3), kernel(1), Wait("x")], 2),
        ([kernel(5), exchanging("x", 3)], 3),  # the last update's end
        ([exchanging("x", 2, times=4), kernel(1, times=4), Wait("x"), kernel(0.5, times=4)], 4),  # of each round, 1
        ([kernel(5), Wait("of something else")], 0),
    ],
)
def test_how_long_kernels_wait_for_exchanges(found, milliseconds):
    assert waiting_seconds(found, card("h100")) == pytest.approx(milliseconds * 1e-3, abs=1e-9)


# A vocabulary larger than a batch and tokens enough that XLA would rather look rows up where the table's parts are, and
# weights smaller than a device's activations. No other array has an axis of 4099, 48 or 192 numbers.
ROWS, LENGTH, VOCABULARY, WIDTH, HIDDEN = 32, 64, 4099, 128, 512
MESHES = ("data=4", "data=2,fsdp=2", "fsdp=4")


@pytest.fixture(scope="module")
def four_devices():
    """Of updates that a process with four devices compiles, exchanges: kind, origin, and arrays as (dtype, dims)."""
    # Quickly: how the code of a device is optimised has no part in what they exchange.
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def of_the_batch(exchanges):
    """Those of arrays that are neither a parameter's, nor a part of one, nor small."""
    matrices = [(VOCABULARY, WIDTH), (WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, HIDDEN)]
    known = {tuple(sorted(m)) for m in matrices}
    for parts in (2, 4):
        known |= {tuple(sorted((a // parts, b))) for m in matrices for a, b in (m, m[::-1]) if a % parts == 0}
    return [
        x for x in exchanges if any(prod(dims) >= 2**12 and tuple(sorted(dims)) not in known for _, dims in x["arrays"])
    ]


@pytest.mark.parametrize("mesh", MESHES)
def test_four_devices_exchange_parameters_and_gradients_alone(four_devices, mesh):
    exchanges = four_devices[mesh]
    assert of_the_batch(exchanges) == []
    kinds = {"all-reduce"} if mesh == "data=4" else {"all-reduce", "all-gather"}  # a CPU reduces, then takes its part
    assert {x["kind"] for x in exchanges} == kinds
    assert {dtype for x in exchanges for dtype, dims in x["arrays"] if prod(dims) >= 2**12} == {"f32"}
    # Each matrix's gradient once along each axis; the tied table's twice, of the lookup and of the head.
    axes = 2 if mesh == "data=2,fsdp=2" else 1
    reduced = [tuple(dims) for x in exchanges if x["kind"] == "all-reduce" for _, dims in x["arrays"] if len(dims) == 2]
    assert len(reduced) <= axes * (1 + 5), reduced


@pytest.mark.parametrize(("fault", "found"), [("whole sort", "all-reduce"), ("plain lookup", "all-to-all")])
def test_rows_that_are_sorted_or_looked_up_together_would_be_seen(four_devices, fault, found):
    assert found in {x["kind"] for x in of_the_batch(four_devices[fault])}


def test_with_the_plain_arithmetic_only_the_lookup_exchanges_rows(four_devices):
    """It knows of no devices. But for `stay_with_rows`, XLA would gather hidden states and logits."""
    assert [x for x in of_the_batch(four_devices["plain"]) if "_embed" not in x["of"]] == []
    spread = of_the_batch(four_devices["rows not held"])
    assert any(VOCABULARY in dims and len(dims) == 3 for x in spread for _, dims in x["arrays"])


def compiled_exchanges(mesh, arithmetic="fused"):
    from tinygpt_jax.config import Config, ModelConfig, TrainingConfig
    from tinygpt_jax.estimate import compiling
    from tinygpt_jax.estimate.program import read_program
    from tinygpt_jax.estimate.traffic import kernels_and_exchanges
    from tinygpt_jax.training.sharding import make_mesh

    shape = ModelConfig(VOCABULARY, LENGTH, n_layers=1, n_heads=2, d_model=WIDTH, d_ff=HIDDEN, norm="pre")
    config = Config(shape, training=TrainingConfig(steps=10, batch_size=ROWS, arithmetic=arithmetic))
    program = read_program(compiling._update(config, make_mesh(mesh)).lower().compile().as_text())
    _, exchanges = kernels_and_exchanges(program)
    return [{"kind": x.kind, "of": x.instruction.op_name, "arrays": x.instruction.result} for x in exchanges]


def main():
    from tinygpt_jax import model
    from tinygpt_jax.fused import embedding

    found = {mesh: compiled_exchanges(mesh) for mesh in MESHES}
    both = "data=2,fsdp=2"
    with mock.patch.object(embedding, "on_each_device", lambda function, *arrays, whole=(): function(*arrays)):
        found["whole sort"] = compiled_exchanges(both)
    with mock.patch.object(embedding, "_lookup", lambda table, tokens: table[tokens]):
        found["plain lookup"] = compiled_exchanges(both)
    found["plain"] = compiled_exchanges(both, "plain")
    with mock.patch.object(model, "stay_with_rows", lambda x: x):
        found["rows not held"] = compiled_exchanges(both, "plain")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
