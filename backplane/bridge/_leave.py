"""The end of a block that has a group of tasks of its own around it."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio


async def leave(stack: AsyncExitStack, exc: BaseException | None) -> bool | None:
    """Leave a block's stack, with a group of tasks in it; whether that swallows ``exc``.

    It hears of a cancellation alone, which may be its own: any other exception of the
    block is not, and it would wrap it.
    """
    if exc is not None and _has_cancellation(exc):
        return await stack.__aexit__(type(exc), exc, exc.__traceback__)
    await stack.__aexit__(None, None, None)
    return False


def _has_cancellation(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return exc.subgroup(anyio.get_cancelled_exc_class()) is not None
    return isinstance(exc, anyio.get_cancelled_exc_class())
