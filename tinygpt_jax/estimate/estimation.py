"""From a compiled program to memory, kernels and time at best; and what to change where it does not fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tinygpt_jax.cards import card
from tinygpt_jax.config import Config
from tinygpt_jax.estimate.compiling import Compiled, Request, compile_for
from tinygpt_jax.estimate.program import read_program
from tinygpt_jax.estimate.roofline import LAUNCH_SECONDS, NOTHING, Part, by_part
from tinygpt_jax.estimate.traffic import kernels_and_exchanges

JAX_SHARE = 0.75  # of a card's memory, that JAX takes if nothing else is said


@dataclass(frozen=True)
class Estimate:
    """Of one device: an update, or a token of each text that is decoded at a time."""

    held_bytes: int  # the state and a batch; of decoding, the weights and the cache
    most_bytes: int  # with the working memory
    parts: dict[str, Part]
    sent_bytes: float  # to other devices
    compile_seconds: float

    @property
    def total(self) -> Part:
        """All parts together."""
        return sum(self.parts.values(), NOTHING)

    @property
    def seconds(self) -> float:
        """At best, if launching kernels costs nothing."""
        return self.total.seconds

    @property
    def seconds_with_launches(self) -> float:
        """At best, if each launch costs its usual time."""
        return self.seconds + LAUNCH_SECONDS * self.total.kernels


def estimate(request: Request) -> Estimate:
    """Compile, read and add up. Raises what `compile_for` does."""
    return account(compile_for(request), request)


def account(compiled: Compiled, request: Request) -> Estimate:
    """What a compiled program takes."""
    program, decodes = read_program(compiled.text), request.rows is not None
    kernels, exchanges = kernels_and_exchanges(program, compiled.written_by_hand)
    return Estimate(
        compiled.arguments_bytes,
        compiled.most_bytes,
        by_part(kernels, exchanges, card(request.card), "choosing the token" if decodes else "optimizer"),
        sum(exchange.sent * exchange.times for exchange in exchanges),
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
    for flags, config in changes(Config.from_json(request.config), request.devices):
        found = estimate(replace(request, config=config.to_json()))
        tell(f"{flags}: {found.most_bytes / 2**30:,.1f} GiB at most")
        if found.most_bytes <= limit:
            return flags, found
    return None


def changes(config: Config, devices: int) -> Iterator[tuple[str, Config]]:
    """What to try, the cheapest to live with first: the same update in less memory, then with fewer rows."""
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
    while batch % 2 == 0 and batch // 2 >= devices:
        batch //= 2
        smaller = {"batch_size": batch, "gradient_accumulation": 1, "remat": True}
        tries.append((f"--batch-size {batch} --remat", smaller))
    for flags, settings in tries:
        yield flags, replace(config, training=replace(training, **settings))
