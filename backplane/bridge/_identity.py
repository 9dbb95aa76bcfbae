"""Which node it is, and what its Lines look like on the wire."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import final

from backplane import DeviceID

from ._exports import Export
from ._faults import pack_id, pack_name
from ._frames import TOKEN, WireLine


@final
@dataclass(frozen=True, slots=True)
class Identity:
    """Which node it is: its name, and the incarnation, which is new each time that it is made."""

    name: str
    incarnation: bytes


def pack_export(me: Identity, export: Export) -> WireLine:
    """A Line to a Device of this node."""
    line = export.line
    return WireLine(
        export.token,
        me.name,
        me.incarnation,
        pack_id(line.id),
        pack_name(line.name),
        export.offers.value,
    )


def pack_ended(me: Identity, device: DeviceID) -> WireLine:
    """A Line to a Device of this node that nobody can reach any longer."""
    return WireLine(secrets.token_bytes(TOKEN), me.name, me.incarnation, pack_id(device), None, 0)
