"""A node in a child process, connected with its parent's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ._child_stream import PrivateStream
from ._child_way import ways
from ._node import Node
from ._peer import Peer


@asynccontextmanager
async def parent_node(**options: Any) -> AsyncIterator[tuple[Node, Peer]]:
    """In a process made by ``in_process(..., node=node)``: a node that is connected with that.

    ::

        async def work() -> None:
            async with parent_node() as (node, parent):
                jobs = await parent.find("jobs")

    The node is called by the parent's name, a dot, the process's (as in reports, with ``_`` for
    what no name of a node may have), a hyphen, and a random number that is another one at each
    start. So the child ``w0`` of a supervisor ``top`` is ``boss.top_w0-230e838a`` at a node
    ``boss``. There, ``export(..., allow=["boss.top_w0-*"])`` is for that child alone, and
    ``allow=["boss.top_*"]`` for all children of ``top``.

    Args:
        options: For the ``Node``.

    Raises:
        RuntimeError: This is no such process, or it had its node already.
    """
    way = ways[0] if ways else None
    if way is None or way.socket is None:
        raise RuntimeError(
            "there is no way to a parent's node: this process was not made by "
            "in_process(..., node=node), or has gone it already"
        )
    sock, way.socket = way.socket, None
    async with Node(way.name, secrets={way.parent: way.secret}, **options) as node:
        way.ask()
        yield node, await node.attach(PrivateStream(sock), dial=True, expect=way.parent)
