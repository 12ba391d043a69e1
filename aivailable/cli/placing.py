"""The options that say where a model may run and how large it may grow, as `deploy` and `fit` take
them.

Owns their words and their grammar; what they mean is `core.state.constraints`' and the node's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

_List = list[str] | None

Context = Annotated[
    str | None,
    typer.Option(
        "--ctx",
        metavar="N|auto|N..auto|N..M",
        help="Tokens of context per slot; auto: as many as fit where it is placed.",
    ),
]

Slots = Annotated[
    str | None,
    typer.Option(
        "--slots",
        metavar="N|auto|N..auto|N..M",
        help="Requests one replica decodes at a time; auto: as many as fit, after the context.",
    ),
]

On = Annotated[
    _List,
    typer.Option(
        "--on", metavar="NODE", help="Only on this node: name, pattern, or id. Repeatable."
    ),
]
NotOn = Annotated[
    _List, typer.Option("--not-on", metavar="NODE", help="Never on this node. Repeatable.")
]
Gpu = Annotated[
    _List,
    typer.Option(
        "--gpu",
        metavar="PATTERN",
        help="Only on devices of such a name, like '*3090*', or of this id. Repeatable.",
    ),
]
Vendor = Annotated[
    _List, typer.Option("--vendor", help="Only nvidia, amd or intel devices. Repeatable.")
]
BackendOption = Annotated[
    _List, typer.Option("--backend", help="Only cuda, rocm, vulkan or cpu. Repeatable.")
]
MinArch = Annotated[
    str | None,
    typer.Option("--min-arch", help="This compute capability or newer: 7.5, or gfx906."),
]
Beside = Annotated[
    _List,
    typer.Option(
        "--beside", metavar="NAME", help="Only on hosts of this other deployment. Repeatable."
    ),
]
ApartFrom = Annotated[
    _List,
    typer.Option(
        "--apart-from", metavar="NAME", help="Never on a host of this other one. Repeatable."
    ),
]


def where(
    *,
    on: Sequence[str] | None,
    not_on: Sequence[str] | None,
    gpu: Sequence[str] | None,
    vendor: Sequence[str] | None,
    backend: Sequence[str] | None,
    min_arch: str | None,
    beside: Sequence[str] | None = None,
    apart_from: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The field `where` of the request; nothing when nothing was asked for."""
    asked: dict[str, Any] = {
        "nodes": on,
        "not_nodes": not_on,
        "gpus": gpu,
        "vendors": vendor,
        "backends": backend,
        "beside": beside,
        "apart_from": apart_from,
    }
    found: dict[str, Any] = {key: list(value) for key, value in asked.items() if value}
    if min_arch is not None:
        found["architecture_min"] = min_arch
    return {"where": found} if found else {}


def context(text: str | None) -> dict[str, Any]:
    """The fields `context` and `context_max`. Raises typer.BadParameter."""
    return _reach(text, "context", "--ctx", "8192..32768")


def slots(text: str | None) -> dict[str, Any]:
    """The fields `slots` and `slots_max`. Raises typer.BadParameter."""
    return _reach(text, "slots", "--slots", "4..16")


def _reach(text: str | None, field: str, option: str, example: str) -> dict[str, Any]:
    if text is None:
        return {}
    low, dots, high = text.partition("..")
    if text == "auto":
        low, dots, high = "", "..", "auto"
    good = (low.isdecimal() and int(low) > 0) or (not low and text == "auto")
    if not good or (dots and high != "auto" and not high.isdecimal()):
        raise typer.BadParameter(
            f"{text!r}: write N, auto, N..auto or N..M, like {example}", param_hint=option
        )
    if high.isdecimal() and int(high) < int(low):
        raise typer.BadParameter(f"{text!r}: the second is less", param_hint=option)
    found: dict[str, Any] = {field: int(low)} if low else {}
    if dots:
        found[f"{field}_max"] = 0 if high == "auto" else int(high)
    return found
