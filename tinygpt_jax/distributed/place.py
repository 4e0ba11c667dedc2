"""Which of a run's processes this is: told by flags or variables, or found on Slurm, Open MPI and Kubernetes."""

import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tinygpt_jax.errors import UsageError, require

_KUBERNETES_PORT = 55527  # any that is free in every pod
_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Place:
    """A process among those of its run."""

    index: int
    count: int
    coordinator: str | None  # host:port at which process 0 listens; None: JAX finds it, on Slurm and Open MPI
    local_index: int = 0  # among the processes of its machine
    local_count: int = 1


def find_place(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """Where this process stands, of what is given, or else what the environment says; None where it is alone.

    Raises:
        UsageError: something is missing, or makes no sense.
    """
    found = _found(environment)
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS") or (found and found.coordinator)
    count = _number("JAX_NUM_PROCESSES", environment) if count is None else count
    index = _number("JAX_PROCESS_ID", environment) if index is None else index
    if found is not None:
        count, index = found.count if count is None else count, found.index if index is None else index
    elif coordinator is None and count is None and index is None:
        return None
    given = {"coordinator": coordinator, "num-processes": count, "process-id": index}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if found is not None and found.coordinator is None and environment.keys() & {"SLURM_JOB_ID", _OPEN_MPI_4}:
        missing = [name for name in missing if name != "--coordinator"]  # JAX knows how to find it there
    if missing or count is None or index is None:
        raise UsageError(f"a run of several processes needs {', '.join(missing)} too: see docs/scaling.md")
    require(count >= 1, "num-processes", count, "must be at least 1")
    require(0 <= index < count, "process-id", index, f"must be 0 to {count - 1}, of {count} processes")
    address = re.fullmatch(r"\S+:(\d{1,5})", coordinator or "none:1", re.ASCII)
    advice = "must be HOST:PORT, of process 0's machine and a free port there"
    require(address is not None and 0 < int(address[1]) < 2**16, "coordinator", coordinator, advice)
    if count == 1:
        return None
    local_index, local_count = (found.local_index, found.local_count) if found else (0, 1)
    return Place(index, count, coordinator, local_index, local_count)


def gpus_of(place: Place, environment: Mapping[str, str] = os.environ) -> list[int]:
    """Numbers of the GPUs that this process takes, among those it sees; empty: all.

    Several processes on a machine that see all of its GPUs take equal shares. (JAX by itself would give each one
    GPU on Slurm and Open MPI, and leave a process that is alone on its machine with one, too.)

    Raises:
        UsageError: they cannot be shared equally.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    seen = len(visible.split(",")) if visible else len(list(_NVIDIA_GPUS.iterdir())) if _NVIDIA_GPUS.is_dir() else 0
    if place.local_count == 1 or seen <= 1:  # one: the cluster has given each process its own
        return []
    each, rest = divmod(seen, place.local_count)
    advice = f"cannot share this machine's {seen} GPUs equally: start one for each GPU, or one for all"
    require(each > 0 and rest == 0, "processes", place.local_count, advice)
    return list(range(place.local_index * each, (place.local_index + 1) * each))


_OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"


def _found(environment: Mapping[str, str]) -> Place | None:
    """What a cluster's own variables say."""

    def number(name: str, default: int) -> int:
        found = _number(name, environment)
        return default if found is None else found

    if {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"} <= environment.keys():
        count = number("SLURM_STEP_NUM_TASKS", number("SLURM_NTASKS", 1))
        per_node, node = _expanded(environment.get("SLURM_STEP_TASKS_PER_NODE", "1")), number("SLURM_NODEID", 0)
        local_count = per_node[node] if node < len(per_node) else 1
        index, local_index = number("SLURM_PROCID", 0), number("SLURM_LOCALID", 0)
        return Place(index, count, None, local_index, local_count) if count > 1 else None
    if "OMPI_COMM_WORLD_SIZE" in environment:
        index, count, local_index, local_count = (
            number(f"OMPI_COMM_WORLD_{name}", default)
            for name, default in (("RANK", 0), ("SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_SIZE", 1))
        )
        return Place(index, count, None, local_index, local_count) if count > 1 else None
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        index, count = number("JOB_COMPLETION_INDEX", 0), _number("JAX_NUM_PROCESSES", environment)
        if count is None:
            alone = f"pod {index} of an indexed Job trains alone: to train with the others, set JAX_NUM_PROCESSES"
            print(f"warning: {alone}", file=sys.stderr)
            return None
        # A pod of an indexed Job is named by its index: job-3.service.namespace... or jobset-workers-0-3.jobset...
        first = re.sub(r"-\d+(?=\.|$)", "-0", socket.getfqdn(), count=1)
        return Place(index, count, f"{first}:{_KUBERNETES_PORT}")
    return None


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name)
    require(text is None or (text.isascii() and text.isdigit()), name, text, "must be a whole number")
    return None if text is None else int(text)


def _expanded(tasks: str) -> list[int]:
    """Slurm's `4(x2),3` as [4, 4, 3]."""
    parts = (re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in tasks.split(","))
    return [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]
