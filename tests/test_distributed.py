"""Several processes: their places, their one voice, and that they train the run that one would."""

import signal
import socket
import time

import pytest

from experiments.measuring.breaking.several import Shape, end, finish, start
from experiments.measuring.breaking.victim import TINY
from experiments.measuring.several import losses, refusals
from tinygpt_jax.distributed import place as places
from tinygpt_jax.distributed.place import Place, find_place, gpus_of
from tinygpt_jax.distributed.relay import said
from tinygpt_jax.distributed.together import _try_address, join
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.runs.checkpoint_files import checkpoints

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "4,2",
}
OPEN_MPI = {f"OMPI_COMM_WORLD_{name}": n for name, n in (("SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1"))}
OPEN_MPI |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3", "JAX_NUM_PROCESSES": "4"}
VARIABLES = {"JAX_COORDINATOR_ADDRESS": "one:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, Place(5, 6, None, 1, 2)),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3(x2)"}, Place(5, 6, None, 1, 3)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),  # a step of one task in a larger job
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:5"}, Place(3, 4, None, 1, 2)),
        (OPEN_MPI | {"JAX_COORDINATOR_ADDRESS": "one:1234"}, Place(3, 4, "one:1234", 1, 2)),
        (KUBERNETES, Place(3, 4, "train-workers-0-0.train.default.svc:55527")),
        (VARIABLES, Place(1, 2, "one:1234")),
        (VARIABLES | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
    ],
)
def test_a_process_finds_its_place(environment, expected, monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda: "train-workers-0-3.train.default.svc")
    assert find_place(environment=environment) == expected


def test_flags_come_before_variables_and_clusters():
    assert find_place("two:99", 3, 0, environment=VARIABLES) == Place(0, 3, "two:99")
    assert find_place("two:99", environment=SLURM) == Place(5, 6, "two:99", 1, 2)


@pytest.mark.parametrize(
    ("given", "environment", "words"),
    [
        (("one:1", None, None), {}, "--num-processes, --process-id"),
        ((None, 2, 0), {}, "--coordinator"),
        ((None, None, None), OPEN_MPI, "--coordinator"),  # of a version that JAX cannot ask
        (("one", 2, 0), {}, "HOST:PORT"),
        (("one:1", 2, 2), {}, "must be 0 to 1"),
        (("one:1", 0, 0), {}, "at least 1"),
        ((None, None, None), VARIABLES | {"JAX_PROCESS_ID": "first"}, "whole number"),
        ((None, None, None), SLURM | {"SLURM_NTASKS": "x"}, "SLURM_NTASKS x: must be a whole number"),
        (("one:99999", 2, 0), {}, "HOST:PORT"),
    ],
)
def test_half_a_place_is_refused(given, environment, words):
    with pytest.raises(UsageError, match=words):
        find_place(*given, environment=environment)


@pytest.mark.parametrize(
    ("local_index", "local_count", "visible", "expected"),
    [
        (0, 1, "0,1,2,3", []),  # alone on its machine: all, where JAX would take one
        (1, 2, "0,1,2,3", [2, 3]),
        (3, 4, "0,1,2,3", [3]),
        (3, 4, "0", []),  # the cluster has given it one already
        (1, 2, "", []),
    ],
)
def test_processes_of_a_machine_share_its_gpus(local_index, local_count, visible, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(places, "_NVIDIA_GPUS", tmp_path / "none")
    place = Place(local_index, 4, "one:1", local_index, local_count)
    assert gpus_of(place, {"CUDA_VISIBLE_DEVICES": visible}) == expected


def test_a_pod_that_is_not_told_of_others_says_that_it_trains_alone(capsys):
    alone = {name: value for name, value in KUBERNETES.items() if name != "JAX_NUM_PROCESSES"}
    assert find_place(environment=alone) is None
    assert "pod 3 of an indexed Job trains alone" in capsys.readouterr().err


def test_an_address_where_nobody_is_is_refused_by_name():
    """The runtime would end the process, without a reason."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match="give another port"):
            _try_address(f"localhost:{port}", True, 1)
        _try_address(f"localhost:{port}", False, 1)
    with pytest.raises(UserError, match="no answer within 0 seconds"):
        _try_address(f"localhost:{port}", False, 0)
    with pytest.raises(UserError, match="is it the name of process 0's machine"):
        _try_address("nowhere.invalid:99", False, 0)


def test_no_time_to_wait_is_refused():
    with pytest.raises(UsageError, match="join-seconds 0: must be at least 1"):
        join(Place(0, 2, "one:1"), 0)


def test_gpus_that_cannot_be_shared_equally():
    with pytest.raises(UsageError, match="3 GPUs"):
        gpus_of(Place(0, 2, "one:1", 0, 2), {"CUDA_VISIBLE_DEVICES": "0,1,2"})


# As jaxlib 0.10 prints it.
DIED = """\
[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1
E1127 01:31:35.124208 4202 coordination_service.cc:1549] Use error polling to propagate an error: UNAVAILABLE: tasks:
1
The tasks have crashed. Check the task logs for an earlier error
F1127 01:31:35.124827 4213 client.h:80] Terminating process because the JAX distributed service detected fatal errors.
The tasks have crashed.

RPC: /xla.coordination.CoordinationService/PollForError
*** Check failure stack trace: ***
    @     0x7facb2240634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DIED, ["error: process 0 of 2: gone\n"]),
        (DIED.replace("PollForError", "RegisterTask"), ["error: process 0 of 2: never came\n"]),
        ("error: ours\n" + DIED, ["error: ours\n"]),
        ("W1127 01:31:35.1 42 cuda.cc:9] a warning\nand more of it\n", None),
        ("W1127 01:31:35.1 42 preemption_notifier.cc:90] SIGTERM caught\n", []),
    ],
)
def test_of_what_the_runtime_prints_one_line_is_left(text, expected):
    lines = text.splitlines(keepends=True)
    assert list(said(lines, "process 0 of 2", "never came", "gone")) == (lines if expected is None else expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("several")
        patch.setenv("TINYGPT_CACHE", str(folder / "cache"))
        yield folder


def test_two_processes_train_the_run_that_one_would(folder):
    """Parameters in parts, a stop by a signal to one process, and on with one process on one device."""
    alone, two = Shape(1, 1, "data=1"), Shape(2, 1, "fsdp=2")
    flags = (*TINY, "--schedule", "constant", "--eval-every", "8", "--log-every", "1")
    processes = start(folder / "two", two, *flags, "--steps", "100000")
    while not checkpoints(folder / "two") and all(one.poll() is None for one in processes):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    ended = end(processes, 60)
    assert [(one.code, one.said) for one in ended] == [(0, []), (0, [])], ended
    assert "saved at step" in ended[0].errors and ended[1].errors == ""
    stopped = checkpoints(folder / "two")[-1]
    assert stopped.step >= 8
    assert (stopped.folder / "params" / "ocdbt.process_1").is_dir()  # each wrote what it had
    for name in ("two", "alone"):
        finish(folder / name, alone, *flags, "--steps", str(stopped.step + 4))
    found, expected = (losses(folder / name) for name in ("two", "alone"))
    assert found[:16] == pytest.approx(expected[:16], rel=1e-5)
    assert found == pytest.approx(expected, rel=2e-2)  # training amplifies rounding


def test_what_cannot_be_is_said_by_every_process(folder):
    refusals(folder, ["configuration"])
