"""From a compiled program to memory, kernels and time at best; and what to change where it does not fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tinygpt_jax.cards import CARDS_OF_A_MACHINE, card
from tinygpt_jax.config import Config
from tinygpt_jax.estimate.compiling import Compiled, Request, compile_for
from tinygpt_jax.estimate.exchanges import Exchange
from tinygpt_jax.estimate.program import read_program
from tinygpt_jax.estimate.roofline import (
    LAUNCH_SECONDS,
    NOTHING,
    NOTHING_SENT,
    Part,
    Sent,
    by_kind,
    by_part,
    waiting_seconds,
)
from tinygpt_jax.estimate.traffic import Kernel, schedule
from tinygpt_jax.mesh import mesh_axes

JAX_SHARE = 0.75  # of a card's memory, that JAX takes if nothing else is said


@dataclass(frozen=True)
class Estimate:
    """Of one device: an update, or a token of each text that is decoded at a time."""

    held_bytes: int  # the state and a batch; of decoding, the weights and the cache
    most_bytes: int  # with the working memory
    parts: dict[str, Part]  # of the kernels
    sent: dict[str, Sent]  # by the kind of exchange
    waiting_seconds: float  # of kernels for exchanges
    compile_seconds: float

    @property
    def total(self) -> Part:
        """All kernels together."""
        return sum(self.parts.values(), NOTHING)

    @property
    def total_sent(self) -> Sent:
        """All exchanges together."""
        return sum(self.sent.values(), NOTHING_SENT)

    @property
    def seconds(self) -> float:
        """At best, if launching kernels costs nothing."""
        return self.total.seconds + self.waiting_seconds

    @property
    def seconds_with_launches(self) -> float:
        """At best, if each launch costs its usual time."""
        return self.seconds + LAUNCH_SECONDS * (self.total.kernels + self.total_sent.times)


def estimate(request: Request) -> Estimate:
    """Compile, read and add up. Raises what `compile_for` does."""
    return account(compile_for(request), request)


def account(compiled: Compiled, request: Request) -> Estimate:
    """What a compiled program takes."""
    target, rest = card(request.card), "optimizer" if request.rows is None else "choosing the token"
    found = schedule(read_program(compiled.text), compiled.written_by_hand)
    return Estimate(
        compiled.arguments_bytes,
        compiled.most_bytes,
        by_part([x for x in found if isinstance(x, Kernel)], target, rest),
        by_kind([x for x in found if isinstance(x, Exchange)], target),
        waiting_seconds(found, target),
        compiled.seconds,
    )


def room(card_name: str) -> float:
    """Bytes that JAX takes of the card."""
    return JAX_SHARE * card(card_name).memory


def first_that_fits(
    request: Request, limit: float, tell: Callable[[str], None] = lambda line: None
) -> tuple[str, Estimate] | None:
    """The first change of an update's settings with which it stays below `limit` bytes, by compiling each.

    Args:
        request: what does not fit.
        limit: bytes of one device.
        tell: is told what was found of each change.

    Returns:
        The flags, and the estimate with them; None if no change helps.
    """
    for flags, changed in changes(request):
        found = estimate(changed)
        tell(f"{flags}: {found.most_bytes / 2**30:,.1f} GiB at most")
        if found.most_bytes <= limit:
            return flags, found
    return None


def changes(request: Request) -> Iterator[tuple[str, Request]]:
    """What to try, the cheapest to live with first: the same update in less memory, then with fewer rows."""
    config, devices = Config.from_json(request.config), request.devices
    training = config.training
    share = training.batch_size // devices
    pieces = [n for n in (2, 4, 8, 16, 32, 64) if share % n == 0 and n > training.gradient_accumulation]
    tries = [] if training.remat else [("--remat", {"remat": True})]
    tries += [(f"--gradient-accumulation {n}", {"gradient_accumulation": n}) for n in pieces]
    if pieces and not training.remat:
        tries.append(
            (f"--remat --gradient-accumulation {pieces[-1]}", {"remat": True, "gradient_accumulation": pieces[-1]})
        )
    batch = training.batch_size
    fewer = []
    while batch % 2 == 0 and batch // 2 >= devices:
        batch //= 2
        smaller = {"batch_size": batch, "gradient_accumulation": 1, "remat": True}
        fewer.append((f"--batch-size {batch} --remat", smaller))

    def changed(settings: dict[str, Any], mesh: str | None = request.mesh) -> Request:
        config_changed = replace(config, training=replace(training, **settings))
        return replace(request, config=config_changed.to_json(), mesh=mesh)

    yield from ((flags, changed(settings)) for flags, settings in tries)
    parts = min(devices, CARDS_OF_A_MACHINE)
    if mesh_axes(request.mesh, devices)["fsdp"] < parts:
        yield f"--mesh fsdp={parts} --remat", changed({"remat": True}, f"fsdp={parts}")
    yield from ((flags, changed(settings)) for flags, settings in fewer)
