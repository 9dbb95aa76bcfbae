"""Waiting that a cancellation does not cut short."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio


async def outlast(done: Callable[[], bool], wait: Callable[[], Awaitable[object]]) -> None:
    """Wait until something is done, whoever cancels meanwhile; then let the cancellation go on."""
    cancelled: BaseException | None = None
    with anyio.CancelScope(shield=True):
        while not done():
            try:
                await wait()
            except anyio.get_cancelled_exc_class() as exc:
                cancelled = exc  # asyncio's own cancellation passes a shield
    if cancelled is not None:
        raise cancelled
