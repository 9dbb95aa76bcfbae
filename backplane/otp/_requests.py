"""Requests that are under way: sent now, and answered later, one or many."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any, final

from backplane.lowlevel import Parking, clock, new_parking

from . import _call
from ._call import DEFAULT_TIMEOUT, process_of
from ._call_errors import CallError, CallTimeoutError
from ._errors import MailboxFullError
from ._from import From
from ._server import Server


@final
class Requests:
    """Requests that are under way, each with a label, answered in whatever order."""

    def __init__(self) -> None:
        self._open: dict[From, Any] = {}
        self._news: deque[From] = deque()
        """Those that are over, as told from whatever thread."""
        self._over: list[tuple[int, From]] = []
        """Those, in the order in which they were."""
        self._parkings: set[Parking] = set()

    def add(self, request: From, label: Any = None) -> None:
        """Put a request in."""
        self._open[request] = label
        request.hearers.append(functools.partial(self._hear, request))
        if request.over:  # then perhaps nobody tells
            self._hear(request)

    def _hear(self, request: From) -> None:
        self._news.append(request)
        for parking in list(self._parkings):
            parking.wake()

    def __len__(self) -> int:
        return len(self._open)

    async def receive(self, timeout: float | None = None) -> tuple[Any, Any]:  # noqa: ASYNC109
        """Wait for the next answer; return it with its label.

        Raises:
            LookupError: There is none under way.
            TimeoutError: None came in time. They stay.
            CallError: That server gave no answer; the error has ``label``.
        """
        if not self._open:
            raise LookupError("no request is under way")
        deadline = None if timeout is None else clock()() + timeout
        parking = new_parking()
        self._parkings.add(parking)
        try:
            while self._open:
                request = self._next()
                if request is not None:
                    return self._take(request)
                if deadline is None:
                    await parking.park()
                elif clock()() < deadline:
                    await parking.park_until(deadline)
                else:
                    raise TimeoutError
        finally:
            self._parkings.discard(parking)
        raise LookupError("another task has taken the last answer")

    def _next(self) -> From | None:
        """The one that was over first, of those that nobody has taken."""
        while self._news:
            request = self._news.popleft()
            heappush(self._over, (request.serial, request))
        while self._over:
            request = heappop(self._over)[1]
            if request in self._open:  # not told twice
                return request
        return None

    def _take(self, request: From) -> tuple[Any, Any]:
        label = self._open.pop(request)
        if request.error is not None:
            request.error.label = label  # type: ignore[attr-defined]
            raise request.error.with_traceback(None)
        return request.value, label


def send_request(server: Server, message: Any) -> From:
    """Send a request without waiting: ``receive_response`` and others wait for its answer."""
    return _call.send_request(process_of(server, message), message, None)


async def receive_response(request: From, timeout: float | None = None) -> Any:  # noqa: ASYNC109
    """Wait for the answer to a request. One that comes after the timeout reaches nobody.

    Raises:
        CallError: As for ``call``.
    """
    try:
        return await wait_response(request, timeout)
    finally:
        request.abandon()


async def wait_response(request: From, timeout: float | None = None) -> Any:  # noqa: ASYNC109
    """As ``receive_response``, but after a timeout it can be waited for again."""
    now = clock()
    await _call.answer(request, None if timeout is None else now() + timeout, now)
    if not request.over:
        raise CallTimeoutError(request.server.pid, request.message, timeout or 0.0)
    if request.error is not None:
        raise request.error.with_traceback(None)
    return request.value


async def multi_call(
    servers: Sequence[Server],
    message: Any,
    timeout: float | None = DEFAULT_TIMEOUT,  # noqa: ASYNC109
) -> tuple[list[tuple[Server, Any]], list[Server]]:
    """Call several servers at once.

    From inside a server that handles a call, it waits at most for what is left
    of that call's time.

    Returns:
        The answers with their servers, and the servers that gave none in time.

    Raises:
        NoRegistryError: One is a plain name, and no registry is around the calling code.
    """
    now = clock()
    timeout = _call.time_limit(timeout, now)
    deadline = None if timeout is None else now() + timeout
    requests: list[tuple[Server, From | None]] = []
    answers, bad = [], []
    try:
        for server in servers:
            try:
                requests.append((server, send_request(server, message)))
            except (CallError, MailboxFullError):
                requests.append((server, None))
        for server, request in requests:
            if request is not None:
                await _call.answer(request, deadline, now)
            if request is None or not request.over or request.error is not None:
                bad.append(server)
            else:
                answers.append((server, request.value))
    finally:
        for _, request in requests:
            if request is not None:
                request.abandon()
    return answers, bad
