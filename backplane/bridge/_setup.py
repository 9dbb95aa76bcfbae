"""What all sessions of a node have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from backplane import Line

from ._codec import Codec
from ._errors import RefusedError
from ._exports import Exports
from ._frames import WireLine
from ._identity import Identity
from ._limits import Limits

if TYPE_CHECKING:
    from ._session import Session


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Who the node is, what it trusts and allows, and who decides and hears of its sessions."""

    me: Identity
    exports: Exports
    codec: Codec
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    """Those that are accepted; the first is the one to prove. None: whoever is there is trusted."""
    secrets_of: dict[str, tuple[bytes, ...]] = field(default_factory=dict, repr=False)
    """Those of certain peers, instead."""
    limits: Limits = field(default_factory=Limits)
    heartbeat: float = 5.0
    dead_after: float = 15.0
    tracebacks: bool = False
    admit: Callable[[Session], RefusedError | None] = lambda _: None
    """Whether a peer that has proved itself may stay; else why not. It is called once."""
    on_up: Callable[[Session], object] = lambda _: None
    on_down: Callable[[Session], object] = lambda _: None
    on_hurry: Callable[[Session, float], object] = lambda _, __: None
    """``tick`` is to be called at that time, earlier than it has said."""
    dialling: dict[bytes, Session] = field(default_factory=dict, repr=False)
    """Sessions that have said hello and heard none, by what they alone have said: a node that
    hears that has dialled itself."""
    find_line: Callable[[WireLine], Line] | None = None
    """What a Line leads to whose Device is neither the peer's nor (perhaps) ours."""
    wire_line: Callable[[Line], WireLine] | None = None
    """A Line for the wire, whoever's its Device is."""
