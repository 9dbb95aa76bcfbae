"""Devices: owned presences in the mesh, and work that is tied to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from inspect import isawaitable
from types import CoroutineType, TracebackType
from typing import NoReturn, Self, TypeVar, TypeVarTuple

from ._errors import DeviceDownError, busy_error
from ._line import Line, Linkable
from ._loop import checkpoint, new_parking
from ._messages import (
    FAULTS,
    Completed,
    Fault,
    Message,
    Messaged,
    Watched,
)
from ._plugboard import OPEN, Plugboard, next_serial
from ._work import ManagedWork, WatchedWork, current_owner, fault_of

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Device(Linkable):
    """An owned presence in the mesh: linked Devices are told when it ends, and why.

    Creating one starts nothing, needs no event loop and may happen in any
    thread. It ends exactly once, for the first of these causes:

    * ``disconnect(fault=None)`` is called;
    * a ``with Device() as device:`` block is left: without a fault, or by an
      exception, which makes it ``Failed(exception)``;
    * ``manage`` is over;
    * it is garbage-collected, which is the fault ``Dropped()``: a forgotten
      Device is never silent.

    The mesh holds no reference that keeps a Device alive: its owner does. Give
    ``device.line()`` to everybody else.

    Links and sends are thread-safe. Messages are taken out by one task at a
    time, in any loop (asyncio or trio) and any thread.

    Example:
        >>> from backplane import Device, LinkMode
        >>> boss, worker = Device("boss"), Device("worker")
        >>> boss.link(worker, LinkMode.MONITOR)
        >>> worker.disconnect()
        >>> boss.receive_nowait()
        Disconnected(sender=<DeviceID ...>, fault=None)
    """

    __slots__ = ()

    def __init__(self, name: str | None = None) -> None:
        """Create a Device.

        Args:
            name: What to call it in a ``repr`` and in reports. It need not be
                unique and nothing is found by it.
        """
        board = Plugboard()
        board.serial = next_serial()
        board.name = name
        board.end = OPEN
        board.inbox = None
        board.waiter = None
        self._board = board

    def line(self) -> Line:
        """A handle to this Device that may be shared with anybody."""
        return Line(self._board)

    # -- the end -----------------------------------------------------------------

    def disconnect(self, fault: Fault | None = None) -> None:
        """End this Device, and tell those linked with it.

        Only the first end counts; later ones do nothing. Messages that are
        still in the mailbox are lost, a task that waits in ``receive`` gets a
        ``DeviceDownError``. Work under ``manage`` goes on, but no message
        reaches it any longer; to stop it, use ``line().shutdown()``.

        Args:
            fault: Why it ended badly; ``None`` if it ended well.

        Raises:
            TypeError: If ``fault`` is no ``Fault``. Wrap an exception as
                ``Failed(exception)``.
        """
        if fault is not None and not isinstance(fault, FAULTS):
            raise TypeError(
                f"a Device ends with a Fault or None, not with a {type(fault).__qualname__}; "
                "wrap an exception as Failed(exception)"
            )
        self._board.close(fault)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._board.close(None if exc is None else fault_of(exc))

    def __del__(self) -> None:
        try:
            board = self._board
        except AttributeError:  # it could not be made
            return
        if board.end is OPEN:
            board.drop()

    # -- messages ----------------------------------------------------------------

    def receive_nowait(self) -> Message:
        """Take the oldest message out of the mailbox.

        Raises:
            anyio.WouldBlock: If there is none.
            DeviceDownError: If this Device has disconnected.
        """
        board = self._board
        message = board.take()
        if message is not None:
            return message
        if board.end is not OPEN:
            raise DeviceDownError(self.id, "receive")
        from anyio import WouldBlock  # slow to import, and not needed by all

        raise WouldBlock

    async def receive(self) -> Message:
        """Wait for the next message and take it out of the mailbox.

        Cancelling it loses nothing: a message is taken out only when it is
        returned.

        Raises:
            DeviceDownError: If this Device has disconnected, or does while
                this waits.
            anyio.BusyResourceError: If another task receives from this Device,
                watches with it, or works under it.
        """
        board = self._board
        parking = new_parking()
        if not board.claim(parking):
            raise busy_error(board, "receive")
        try:
            if board.inbox:
                await checkpoint()
            while (message := board.take()) is None:
                if board.end is not OPEN:
                    raise DeviceDownError(self.id, "receive")
                await parking.park()
            return message
        finally:
            board.release()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        """As ``receive``, but the iteration ends when this Device disconnects."""
        try:
            return await self.receive()
        except DeviceDownError:
            raise StopAsyncIteration from None

    # -- work --------------------------------------------------------------------

    async def watch(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> Watched[T]:
        """Wait for a message or for ``fn``, whichever comes first.

        When a message comes, ``fn`` is cancelled and its cleanup awaited. If
        both are there, the message is returned and the value of ``fn`` dropped.
        If one is waiting already, ``fn`` is not called.

        Cancelling it cancels ``fn``, and loses no message: one is taken out of
        the mailbox only when it is returned. That holds for an exception from
        ``fn`` too, which comes out as it is.

        Returns:
            ``Messaged(message)`` or ``Completed(value)``.

        Raises:
            DeviceDownError: If this Device has disconnected. ``fn`` was not
                called.
            anyio.BusyResourceError: If another task receives from this Device,
                watches with it, or works under it. ``fn`` was not called.
            TypeError: If ``fn`` is not callable, or what it returns cannot be
                awaited.
        """
        _check_callable(fn, "watch")
        outcome: Completed[T] | None = None
        async with WatchedWork(self._board) as work:
            if work.stopped:
                await checkpoint()
            else:
                outcome = Completed(await _awaitable(fn, fn(*args)))
        message = self._board.take() if work.stopped else None
        if message is not None:
            return Messaged(message)
        if outcome is None:  # somebody else took the message, or it went with the Device
            return Messaged(await self.receive())
        return outcome

    async def part_manage(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run ``fn`` under this Device; as ``manage``, but the Device survives its success.

        When ``fn`` returns, the Device stays connected and nobody is told, so
        it can be used and managed again.

        News of Devices that ended well are taken out of the mailbox meanwhile;
        all else is as for ``manage``.
        """
        _check_callable(fn, "part_manage")
        return await self._work(fn, args, ends=False)

    async def manage(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run ``fn`` as the work of this Device, which ends with it.

        ===============================  =============================  ===================
        what happens                     the caller gets                who is linked hears
        ===============================  =============================  ===================
        ``fn`` returns                   its value                      ``None``
        ``fn`` raises                    that very exception            ``Failed(exc)``
        ``Disconnected(x, None)`` comes  nothing, work goes on
        ``Disconnected(x, fault)`` comes ``CascadeCrash(x, fault)``     ``Cascaded(x, fault)``
        ``Shutdown(x)`` comes            ``PowerOffCrash(x)``           ``None``
        the caller is cancelled          its cancellation               ``Cancelled()``
        ===============================  =============================  ===================

        Whatever stops ``fn``, its cleanup is awaited, and only then does
        anybody hear. An exception from that cleanup is the ``__context__`` of
        the crash. If the caller is cancelled after a message has stopped ``fn``,
        it gets its cancellation, and those linked hear what the message caused.

        No task is started: ``fn`` runs in the caller's. A message cancels it as
        ``asyncio.timeout`` or ``trio.CancelScope`` would; on asyncio that is one
        ``CancelledError``, which an anyio shield does not hold off.

        If a message that stops the work is waiting already, ``fn`` is not called.

        A task that asyncio cancels before its first step never comes to call
        this: its Device lives until it is dropped. (trio takes that first step.)

        Raises:
            CascadeCrash: A Device that this one hears ended with a fault.
            PowerOffCrash: Somebody asked this Device to shut down.
            DeviceDownError: If this Device has disconnected. ``fn`` was not
                called.
            anyio.BusyResourceError: If another task receives from this Device,
                watches with it, or works under it. ``fn`` was not called.
            TypeError: If ``fn`` is not callable, or what it returns cannot be
                awaited.
        """
        _check_callable(fn, "manage")
        work = ManagedWork(self._board, self, True)
        work.enter()
        try:
            value = await _awaitable(fn, fn(*args))
        except BaseException as exc:
            await work.leave(exc)
            raise
        await work.leave(None)
        return value

    async def _work(self, fn: Callable[[*Ts], Awaitable[T]], args: tuple[*Ts], ends: bool) -> T:
        work = ManagedWork(self._board, self, ends)
        work.enter()
        try:
            value = await _awaitable(fn, fn(*args))
        except BaseException as exc:
            await work.leave(exc)
            raise
        await work.leave(None)
        return value

    def managed(self) -> AbstractAsyncContextManager[None]:
        """As ``manage``, for a block: ``async with device.managed(): ...``.

        Entering raises at once what would keep ``manage`` from calling ``fn``;
        the block is then not entered.
        """
        return ManagedWork(self._board, self, ends=True)

    # -- the rest ----------------------------------------------------------------

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be copied or pickled: it has one owner; use line()")

    def __repr__(self) -> str:
        return f"<Device {self._board!r}>"


def current_device() -> Device:
    """The Device that manages the calling code: the innermost one, if several do.

    Tasks and threads that managed code starts belong to it for as long as the
    work lasts, if they take a copy of its context, as asyncio, trio and anyio
    see to.

    Raises:
        LookupError: If no Device does.
    """
    device = current_owner()
    if device is None:
        raise LookupError("no Device manages this code: run it under Device.manage()")
    assert isinstance(device, Device)
    return device


def _check_callable(fn: object, verb: str) -> None:
    if callable(fn):
        return
    if isinstance(fn, Coroutine):
        fn.close()
        raise TypeError(
            f"{verb} wants a function and its arguments, not a coroutine: "
            f"write {verb}(fn, arg), not {verb}(fn(arg))"
        )
    raise TypeError(f"{verb} wants an async function, not a {type(fn).__qualname__}")


def _awaitable(fn: object, result: Awaitable[T]) -> Awaitable[T]:
    if type(result) is not CoroutineType and not isawaitable(result):
        raise TypeError(
            f"{getattr(fn, '__qualname__', 'the function')} returned a "
            f"{type(result).__qualname__}, which cannot be awaited: pass an async function"
        )
    return result
