"""Dataclasses that know which values their fields may have."""

import math
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from tinygpt_jax.errors import require


class Range(NamedTuple):
    """The least and the largest value of a number; stands in the annotation of its field."""

    least: float
    largest: float = math.inf

    def __str__(self) -> str:
        return f"at least {self.least:.10g}" + (f" and at most {self.largest:.10g}" if self.largest < math.inf else "")


class Settings:
    """A frozen dataclass of which each value fits its field's annotation, whether a flag, JSON or a caller gives it."""

    def __post_init__(self) -> None:
        annotated = get_type_hints(type(self), include_extras=True)
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            _check_type(name, hint, value)
            huge = type(value) is int and abs(value) >= 2**53  # beyond what a float counts, and long to print
            shown = f"of {len(str(abs(value)))} digits" if huge else value
            for limits in _ranges(annotated[name]):
                default = getattr(type(self), name)
                advice = "" if default is None else f", such as {default}"
                fits = value is None or limits.least <= value <= limits.largest
                require(fits, name, shown, f"must be {limits}{advice}")
            require(not huge, name, shown, "must be below 2^53")


def _check_type(name: str, hint: Any, value: Any) -> None:
    if get_origin(hint) is Literal:
        options = get_args(hint)
        require(value in options, name, repr(value), f"must be one of {', '.join(options)}")
        return
    allowed = get_args(hint) or (hint,)
    # JSON has one kind of number: a whole number is a fine value for a float field. A bool is not a number.
    fits = any(type(value) is kind or (kind is float and type(value) is int) for kind in allowed)
    require(fits, name, repr(value), f"must be {' or '.join(kind.__name__ for kind in allowed)}")


def _ranges(hint: Any) -> list[Range]:
    """Those in `Annotated[...]` and in `Annotated[...] | None`."""
    marks = (mark for part in (hint, *get_args(hint)) for mark in getattr(part, "__metadata__", ()))
    return [mark for mark in marks if isinstance(mark, Range)]
