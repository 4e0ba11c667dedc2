"""What the processes of a run do together. With one process each function does the plain thing."""

import hashlib
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from tinygpt_jax.distributed.place import Place, gpus_of
from tinygpt_jax.distributed.voice import LostProcessError, speak_as
from tinygpt_jax.errors import UsageError, UserError, require

Result = TypeVar("Result")

_HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
_MESSAGE = 2**13  # bytes that processes exchange at a time


def join(place: Place, seconds: int) -> None:
    """Become one of the run's processes. Call it before JAX looks for devices.

    Where the others do not come in time, or one is gone later, JAX's runtime ends this process, with one line.

    Args:
        place: which process this is.
        seconds: how long to wait for the others.

    Raises:
        UsageError: the machine's GPUs cannot be shared, or there is no time to wait.
        UserError: process 0 cannot be reached, or is this one and its port is taken.
    """
    require(seconds >= 1, "join-seconds", seconds, "must be at least 1")
    gpus, where = gpus_of(place), place.coordinator or "the machine of process 0"
    never_came = (
        f"not all {place.count} processes came to {where} within {seconds} seconds: start all of them, with the same "
        "--coordinator and --num-processes, each with its own --process-id; --join-seconds waits longer"
    )
    speak_as(place.index, place.count, never_came)
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))  # the runtime aborts, which would write all memory to the disk
    if place.coordinator:
        _try_address(place.coordinator, place.index == 0, seconds)
    jax.config.update("jax_enable_preemption_service", True)  # with which `training.stopping` agrees on an update
    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=gpus,
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=_HEARTBEAT,
    )


def _try_address(coordinator: str, is_mine: bool, seconds: int) -> None:
    """Raise UserError where JAX's runtime, which tells no reasons, would end this process: nobody can be reached."""
    host, port = coordinator.rsplit(":", 1)
    host, latest = host.strip("[]"), time.monotonic() + seconds
    if is_mine:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise UserError(
                f"--coordinator {coordinator}: {os.strerror(error.errno or 0)}; give another port"
            ) from None
        return
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except socket.gaierror as error:
            problem = f"{error.strerror}: is it the name of process 0's machine?"
        except OSError as error:
            problem = f"no answer within {seconds} seconds ({error.strerror or error}): is process 0 started there?"
        if time.monotonic() > latest:
            raise UserError(f"--coordinator {coordinator}: {problem}")
        time.sleep(0.2)


def is_first() -> bool:
    """Whether this process is the one that writes the run's files and speaks."""
    return jax.process_index() == 0


def in_turn(function: Callable[[], Result]) -> Result:
    """`function()` in process 0, and when it is done in all the others, which find what it made on a shared disk.

    Raises:
        UserError: it failed somewhere; in every process.
    """
    if jax.process_count() == 1:
        return function()
    result = None
    for turn in (is_first(), not is_first()):
        problem: UserError | None = None
        if turn:
            try:
                result = function()
            except UserError as error:
                problem = error
        said = _exchange("" if problem is None else str(problem)[: _MESSAGE // 4])  # a letter has up to 4 bytes
        if problem is not None:
            raise problem
        for number, text in enumerate(said):
            if text:
                raise UserError(f"it ends with process {number}: {text}")
    return result  # pyright: ignore[reportReturnType]


def of_first(function: Callable[[], str]) -> str:
    """What `function` returns in process 0, in all. Raises like `in_turn`."""
    texts = []

    def only_first() -> None:
        if is_first():
            texts.append(function())

    in_turn(only_first)
    return _exchange(texts[0] if texts else "")[0]


def agree(facts: Mapping[str, str], remedy: str) -> None:
    """Raise UsageError, in all processes, if some fact is not the same in all: which, where, and what to do."""
    all_facts = [json.loads(text) for text in _exchange(json.dumps(dict(facts)))]
    for number, others in enumerate(all_facts):
        differing = [name for name in facts if others[name] != all_facts[0][name]]
        if differing:
            there, here = (_short(x[differing[0]]) for x in (others, all_facts[0]))
            what = f"{differing[0]}: {there} in process {number}, {here} in process 0"
            raise UsageError(f"the processes of a run must agree, and do not ({what}): {remedy}")


def running() -> dict[str, str]:
    """What this process runs: the versions of what decides an update's result, and a checksum of our own sources."""
    package = Path(__file__).parents[1]
    sources = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        sources.update(path.read_bytes())
    versions = {
        name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint")
    }
    return {"source code": sources.hexdigest()[:16], **versions}


@contextmanager
def others_may_go() -> Iterator[None]:
    """Say in one line that another process is gone, where an exchange with it fails.

    Raises:
        UserError: one is.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        text = str(error)
        if jax.process_count() == 1 or not any(word in text for word in ("Gloo", "NCCL", "nccl", "UNAVAILABLE")):
            raise
        raise LostProcessError from error


def _exchange(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental.multihost_utils import process_allgather

    content = text.encode()
    if len(content) > _MESSAGE:
        raise ValueError(f"{len(content)} bytes are more than processes exchange")
    padded = np.zeros(_MESSAGE, np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    with others_may_go():
        gathered = np.asarray(process_allgather(padded))
    return [bytes(row).rstrip(b"\0").decode() for row in gathered]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
