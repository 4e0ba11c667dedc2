"""An estimate as one JSON object, and as a page to read."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from tinygpt_jax.cards import CARDS_OF_A_MACHINE, Card, card
from tinygpt_jax.config import Config
from tinygpt_jax.estimate.compiling import Request, state_bytes
from tinygpt_jax.estimate.estimation import JAX_SHARE, Estimate, room
from tinygpt_jax.estimate.roofline import LAUNCH_SECONDS
from tinygpt_jax.mesh import mesh_axes
from tinygpt_jax.terminal import duration


def summary(request: Request, found: Estimate | None, remedy: tuple[str, Estimate] | None) -> dict[str, Any]:
    """All that is known, as one JSON object; bytes are of one device, tokens/s of all together.

    Without an estimate, what needs no compiler: the state, and the least time that the arithmetic takes.
    """
    config, target, trains = Config.from_json(request.config), card(request.card), request.rows is None
    itemsize = _itemsize(config, target)
    peak = (target.bfloat16_flops if itemsize == 2 else target.float32_flops) * request.devices
    weights = config.model.matrix_parameters
    if trains:
        tokens, flops = config.training.batch_size * config.model.context_length, config.model.flops_per_token
        least = flops * tokens / peak
    else:  # forward alone, for one token of each text; and all weights are read for it
        tokens, flops = request.rows or 1, config.model.flops_per_token // 3
        least = max(flops * tokens / peak, itemsize * weights / target.bandwidth)
    document: dict[str, Any] = {
        "gpu": request.card,
        "devices": request.devices,
        "mesh": mesh_axes(request.mesh, request.devices),
        "what": "train" if trains else "generate",
        "rows": config.training.batch_size if trains else request.rows,
        "context_length": config.model.context_length,
        "matrix_parameters": weights,
        "compute_dtype": "bfloat16" if itemsize == 2 else "float32",
        "memory": {"jax_takes": round(room(request.card)), "card": target.memory},
        "flops_per_token": flops,
        "at_peak": {"seconds": least, "tokens_per_second": tokens / least},
        "compiled": found is not None,
    }
    if found is None:  # here, not above: where the compiler is, JAX would complain that there is no driver
        held = state_bytes(config, request.devices, request.mesh) if trains else 4 * weights
        document["memory"]["held"] = held
        return document
    document["memory"] |= {"held": found.held_bytes, "most": found.most_bytes}
    document["fits"] = found.most_bytes <= room(request.card)
    document["remedy"] = remedy and {"flags": remedy[0], "most": remedy[1].most_bytes, "seconds": remedy[1].seconds}
    document["parts"] = {name: dataclasses.asdict(part) for name, part in found.parts.items()}
    document["total"] = dataclasses.asdict(found.total)
    document["sent"] = {kind: dataclasses.asdict(sent) for kind, sent in found.sent.items()}
    document["total_sent"] = dataclasses.asdict(found.total_sent)
    document["waiting_seconds"] = found.waiting_seconds
    for name, seconds in {"best": found.seconds, "with_launches": found.seconds_with_launches}.items():
        share = flops * tokens / seconds / peak
        document[name] = {"seconds": seconds, "tokens_per_second": tokens / seconds, "share_of_peak": share}
    return document


def page(document: dict[str, Any]) -> Iterator[str]:
    """The lines of a page that says what a `summary` holds."""
    trains, compiled, memory = document["what"] == "train", document["compiled"], document["memory"]
    devices, cards = document["devices"], f"{document['devices']} x {card(document['gpu']).name}"
    cards += f" in {devices // CARDS_OF_A_MACHINE} machines" if devices > CARDS_OF_A_MACHINE else ""
    cards += f" ({', '.join(f'{axis}={n}' for axis, n in document['mesh'].items())})" if devices > 1 else ""
    doing = "training" if trains else "generating"
    yield f"{doing}, preset {document['preset']}, on {cards}: " + (
        "compiled for it and estimated, not run" if compiled else f"not compiled; {document['problem']}"
    )
    rows = f"{document['rows']} x {document['context_length']} tokens an update" if trains else ""
    rows = rows or f"a token for each of {document['rows']} texts at a time"
    millions = document["matrix_parameters"] / 1e6
    yield f"{millions:,.1f} M parameters in matrices, {rows}, in {document['compute_dtype']}"
    yield ""
    yield from _memory(document, memory)
    yield ""
    if compiled:
        yield from _parts(document, "an update" if trains else "a token of each text")
        yield ""
        if document["sent"]:
            yield from _sent(document)
            yield ""
    yield from _speed(document)


def _memory(document: dict[str, Any], memory: dict[str, int]) -> Iterator[str]:
    held = "the state" if document["what"] == "train" else "weights and cache"
    fits, card_takes = document.get("fits"), f"JAX takes by default ({JAX_SHARE:.0%})"
    entries = {held: memory["held"], "at most": memory.get("most"), card_takes: memory["jax_takes"]}
    yield f"{'memory of each device':<34}{'GiB':>8}"
    for name, size in (entries | {"the card has": memory["card"]}).items():
        if size is not None:
            yield f"{name:<34}{size / 2**30:>8.2f}"
    if fits is not None:
        yield "it fits" if fits else f"it does not fit: {_advice(document)}"


def _advice(document: dict[str, Any]) -> str:
    if remedy := document["remedy"]:
        slower = remedy["seconds"] / document["best"]["seconds"]
        return f"with {remedy['flags']} it does, {remedy['most'] / 2**30:,.1f} GiB at most, {slower:.2f} x the time"
    memory = document["memory"]
    if document["what"] == "generate":
        return "write fewer --rows at a time, or take a smaller model (--n-layers, --d-model)"
    if memory["most"] < 0.95 * memory["card"]:
        return "set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95, or take a smaller model (--n-layers, --d-model)"
    return "no setting that was tried makes it fit; take a smaller model (--n-layers, --d-model)"


def _parts(document: dict[str, Any], what: str) -> Iterator[str]:
    yield f"{what:<34}{'kernels':>8}{'GB':>10}{'TFLOP':>10}{'ms':>12}"
    for name, part in (document["parts"] | {"all": document["total"]}).items():
        gigabytes, tera, milliseconds = part["bytes"] / 1e9, part["flops"] / 1e12, part["seconds"] * 1e3
        yield f"{name:<34}{part['kernels']:>8,}{gigabytes:>10.3f}{tera:>10.3f}{milliseconds:>12.3f}"


def _sent(document: dict[str, Any]) -> Iterator[str]:
    yield f"{'each device sends':<24}{'times':>8}{'GB':>10}{'to other machines':>20}{'ms':>12}"
    for kind, sent in (document["sent"] | {"all": document["total_sent"]}).items():
        gigabytes, between, milliseconds = sent["bytes"] / 1e9, sent["between_machines"] / 1e9, sent["seconds"] * 1e3
        yield f"{kind:<24}{sent['times']:>8,}{gigabytes:>10.3f}{between:>20.3f}{milliseconds:>12.3f}"
    waiting = document["waiting_seconds"]
    yield f"{'of which kernels have to wait for':<62}{waiting * 1e3:>12.3f}"


def _speed(document: dict[str, Any]) -> Iterator[str]:
    at_peak = document["at_peak"]["tokens_per_second"]
    limit = f"at the datasheet's peak it would be {at_peak:,.0f} tokens/s ({document['flops_per_token'] / 1e6:,.0f} "
    limit += "MFLOP a token)"
    if not document["compiled"]:
        yield limit
    else:
        best, launched = document["best"], document["with_launches"]
        yield (
            f"at best {best['tokens_per_second']:,.0f} tokens/s, {best['share_of_peak']:.0%} of peak; "
            f"{launched['tokens_per_second']:,.0f} if each kernel takes {LAUNCH_SECONDS * 1e6:.1f} µs to start"
        )
        yield limit
    if run := document.get("run"):
        seconds = document["with_launches" if document["compiled"] else "at_peak"]["seconds"]
        how = "with the time to start kernels" if document["compiled"] else "at the datasheet's peak"
        yield f"this run, {run['length']}: {duration(run['updates'] * seconds)} at best, {how}"


def _itemsize(config: Config, target: Card) -> int:
    """Bytes of a number in the products, as `devices.resolve_dtype` decides."""
    name = config.training.compute_dtype
    return 2 if name == "bfloat16" or (name == "auto" and target.generation.capability >= (8, 0)) else 4
