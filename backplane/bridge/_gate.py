"""How connections come in and go out: listening and dialling, and who is turned away."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, final

import anyio
from anyio.abc import ByteStream, TaskGroup

from backplane.lowlevel import clock

from . import _addresses
from ._addresses import Address
from ._errors import (
    AddressError,
    AuthError,
    BridgeError,
    DuplicateError,
    NameTakenError,
    NotConnectedError,
    ProofRefusedError,
)
from ._news import Attempts, logger
from ._peer import Peer
from ._status import Retry
from ._switchboard import Switchboard, Try
from ._transports import dial, listen, source_of

_PATIENCE, _MOST_PATIENCE = 0.1, 0.4
"""Seconds until a connection that is said to be there must be; then it is dialled again."""
_ASKED = 1.1
"""Seconds after which one that is asked for a sign of life has given it, or is lost."""
_DISBELIEVED = 3
"""How often in a row a peer has to hang up at this node's proof, until it is not by chance."""
_BREATH = 0.1
"""Seconds between attempts to accept connections, when the system has nothing left for them."""
_GONE = {errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO}
"""The stranger, not this machine, is why a connection could not be accepted."""


@final
class Gate:
    """A node's listeners, and its way out. It is for the node's loop alone."""

    def __init__(self, board: Switchboard, name: str) -> None:
        self._board = board
        self._name = name
        self._limits = board.setup.limits
        self._tasks: TaskGroup | None = None
        self._thread = 0
        self.is_over = False
        """The node has ended."""
        self._shields: set[anyio.CancelScope] = set()
        self._pending: Counter[str] = Counter()

    @property
    def pending(self) -> int:
        """How many connections have come and not proved themselves yet."""
        return self._pending.total()

    def open(self, tasks: TaskGroup) -> None:
        """The node begins: connections may live in these tasks."""
        self._tasks = tasks
        self._thread = threading.get_ident()

    def close(self) -> None:
        """It ends: none live any longer."""
        assert self._tasks is not None
        self.is_over = True
        for shield in self._shields:
            shield.cancel()
        self._tasks.cancel_scope.cancel()

    def _start(self, fn: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task for connections: `close` ends it, and not what ends the node's block.

        Raises:
            RuntimeError: The node does not run, or not in this thread.
        """
        self._running().start_soon(self._shielded, fn, args)

    async def _shielded(
        self, fn: Callable[..., Awaitable[object]], args: tuple[object, ...]
    ) -> None:
        with anyio.CancelScope(shield=True) as shield:
            if self.is_over:
                shield.cancel()
            self._shields.add(shield)
            try:
                await fn(*args)
            finally:
                self._shields.discard(shield)

    def _running(self) -> TaskGroup:
        if self._tasks is None:
            raise RuntimeError("enter the node first: async with Node(...) as node")
        if self.is_over:
            raise RuntimeError("the node has ended: make a new one")
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                f"node {self._name!r} lives in another thread's loop: ask there for this, as by "
                "anyio.from_thread.run"
            )
        return self._tasks

    def _check(self, address: str, insecure_plaintext: bool) -> Address:
        self._running()
        where = _addresses.parse(address)
        setup = self._board.setup
        _addresses.check(
            where,
            has_secret=bool(setup.secrets),
            has_tls=self._board.has_tls,
            insecure_plaintext=insecure_plaintext,
        )
        if insecure_plaintext and where.kind == "tcp" and not where.is_loopback:
            logger.warning("node %r: %s is neither encrypted nor signed", self._name, where)
        return where

    # -- in ------------------------------------------------------------------------------

    async def listen(self, address: str, insecure_plaintext: bool) -> str:
        """See ``Node.listen``."""
        where = self._check(address, insecure_plaintext)
        try:
            listener, bound, remove = await listen(where)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen at {where}: {_text(error)}") from error
        try:
            self._start(self._serve, listener, bound, remove)
        except BaseException:
            remove()
            await anyio.aclose_forcefully(listener)
            raise
        return str(bound)

    async def _serve(self, listener: Any, address: Address, remove: Callable[[], None]) -> None:
        tasks = self._tasks
        assert tasks is not None
        try:
            while True:
                try:
                    stream = await listener.accept()
                except (OSError, anyio.BrokenResourceError) as error:
                    await self._breathe(error, address)
                else:
                    tasks.start_soon(self._shielded, self._receive, (stream, address))
        finally:
            remove()
            await anyio.aclose_forcefully(listener)

    async def _breathe(self, error: Exception, address: Address) -> None:
        """Outlast what keeps a listener from accepting: a lack of descriptors, most of all."""
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _GONE:
            return
        self._board.refuse(str(address), cause or error)
        await anyio.sleep(_BREATH)

    async def _receive(self, stream: ByteStream, address: Address) -> None:
        source = source_of(stream, address)
        if source is None or not self._may_try(source):
            kind = "stranger" if source is None else "too many handshakes"
            self._board.refuse(source or str(address), kind)
            await anyio.aclose_forcefully(stream)
            return
        tried = Try(self._pending, source)
        try:
            await self._board.answer(stream, address, source, tried)
        finally:
            tried.over()

    def _may_try(self, source: str) -> bool:
        if self._pending.total() >= self._limits.pending_handshakes:
            return False
        return self._pending[source] < self._limits.pending_per_source

    # -- out -----------------------------------------------------------------------------

    async def connect(
        self, address: str, expect: str | None, retry: Retry | None, insecure_plaintext: bool
    ) -> Peer:
        """See ``Node.connect``."""
        where = self._check(address, insecure_plaintext)
        if where.port == 0 and where.kind != "unix":
            raise AddressError(f"{where}: port 0 is to listen at: say which it became")
        if not isinstance(retry, Retry | None):
            raise TypeError(f"retry is a Retry, not {retry!r}: write retry=Retry()")
        disbelieved = 0
        attempts = Attempts(self._name, str(where))
        for delay in () if retry is None else retry.delays():
            try:
                return await self._connect(where, expect)
            except (NotConnectedError, TimeoutError) as error:
                disbelieved = disbelieved + 1 if isinstance(error, ProofRefusedError) else 0
                if disbelieved == _DISBELIEVED:
                    raise
                attempts.failed(error)
            await anyio.sleep(delay)
        return await self._connect(where, expect)

    async def _connect(self, where: Address, expect: str | None) -> Peer:
        async def dial(patience: float) -> Peer:
            return await self._dial(where, expect, patience)

        return await persist(dial, self._limits.handshake)

    async def _dial(self, where: Address, expect: str | None, patience: float) -> Peer:
        whom, seconds = str(where), self._limits.handshake
        if expect is not None:
            whom = f"node {expect!r} at {whom}"
        try:
            with anyio.fail_after(seconds):
                stream = await dial(where)
        except TimeoutError as error:
            raise TimeoutError(
                f"cannot connect with {whom}: nobody answered within {seconds:g} seconds"
            ) from error
        except OSError as error:
            why = f"nobody answers there: {_text(error)}"
            raise NotConnectedError(expect or str(where), f"connect with {whom}", why) from error
        if source_of(stream, where) is None:
            await anyio.aclose_forcefully(stream)
            raise AuthError(f"{where}: another user listens there")
        return await self._join(stream, where, True, expect, patience)

    async def attach(
        self,
        stream: ByteStream,
        dialled: bool,
        expect: str | None,
        patience: float | None = None,
    ) -> Peer:
        """See ``Node.attach``."""
        patience = self._limits.handshake if patience is None else patience
        return await self._join(stream, Address("stream", "a stream"), dialled, expect, patience)

    def attach_soon(self, stream: ByteStream, expect: str, over: Callable[[], object]) -> None:
        """Let a peer dial over a stream; ``over`` is called when it is there, or will not be."""

        async def attach() -> None:
            try:
                await self.attach(stream, False, expect)
            except (BridgeError, TimeoutError) as error:
                logger.warning("node %r: no connection with %r: %s", self._name, expect, error)
            finally:
                over()

        self._start(attach)

    async def _join(
        self,
        stream: ByteStream,
        where: Address,
        dialled: bool,
        expect: str | None,
        patience: float,
    ) -> Peer:
        return await self._board.join(
            self._start, stream, where, dialled=dialled, expect=expect, patience=patience
        )


def _text(error: OSError) -> str:
    """What the system says; it was asked for each of a host's numbers, perhaps."""
    first: BaseException | None = error.__cause__
    if isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    cause = first if isinstance(first, OSError) else error
    known = isinstance(cause, ConnectionError | FileNotFoundError)
    return os.strerror(cause.errno) if known and cause.errno else cause.strerror or str(cause)


async def persist(dial: Callable[[float], Awaitable[Peer]], seconds: float) -> Peer:
    """Dial as long as either side may take a connection that is dead for one that lives.

    Args:
        dial: Does it; another connection with that node has so many seconds to come up.
        seconds: How long that goes on; not as long if another node of that name surely lives.
    """
    now = clock()
    deadline = now() + seconds
    patience = _PATIENCE
    told = False
    while True:
        try:
            return await dial(patience)
        except (DuplicateError, NameTakenError) as error:
            surely = type(error) is NameTakenError
            pause = _ASKED if surely else patience
            if isinstance(error, DuplicateError):
                pause = 0.0  # it was waited for
            if (surely and told) or now() + max(pause, patience) >= deadline:
                raise
            told = told or surely
        await anyio.sleep(pause)
        patience = min(2 * patience, _MOST_PATIENCE)
