"""The client of a NATS server, in a thread and a loop of its own.

``nats-py`` is for asyncio alone; nodes run on trio, too. So it lives apart, and
what is to be published and what has come are handed over between the threads.
It connects again when it loses the server, and when the server throws it out.
What was lost meanwhile is missed by those that it was meant for: here nothing
is kept to be sent again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

import anyio
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from backplane.lowlevel import Parking, new_parking, outlast

from ._errors import NotConnectedError

_logger = logging.getLogger("backplane.bridge")

Hear: TypeAlias = Callable[[str, bytes, str | None], object]
"""Called in the client's thread: subject, bytes, and the status if the server itself says it."""

_CLOSING = 2.0
"""Seconds that the last datagrams have to go."""
_AGAIN = 0.5
"""Seconds until a new client takes the place of one that was thrown out."""
_SUBSCRIBING = 5
"""Seconds within which a subscription has to be in force."""
_DEFAULTS: Mapping[str, Any] = {
    "name": "backplane",
    "max_reconnect_attempts": -1,
    "reconnect_time_wait": 0.25,
    "ping_interval": 10,
}


@final
class NatsClient:
    """Publishes, and has subscriptions heard.

    ``start``, ``stop`` and ``subscribe`` are for one loop, the rest for any thread.
    """

    def __init__(
        self, servers: Sequence[str], options: Mapping[str, Any], *, most_waiting: int
    ) -> None:
        self._servers = list(servers)
        self._options = {**_DEFAULTS, **options}
        self._most_waiting = most_waiting
        self._out: deque[tuple[str, bytes, str]] = deque()
        self._out_bytes = 0
        self._lock = threading.Lock()
        """For what waits to go out, and the counts."""
        self._hear: dict[str, Hear] = {}
        """What is to be subscribed."""
        self._in_force: set[str] = set()
        """What is subscribed, as the server has confirmed."""
        self._waiters: list[Parking] = []
        """Whoever waits for the thread."""
        self._client: Client | None = None
        self._running = self._stopping = self._over = False
        self._refused: BaseException | None = None
        """The server's word that it lets nobody in who is like this."""
        self.error: BaseException | None = None
        """What went wrong last."""
        self.connections = 0
        """How often there was a connection with a server."""
        self.dropped = 0
        """Datagrams that were published and have surely not gone."""

    # -- for one loop ------------------------------------------------------------------------

    async def start(self, timeout: float) -> None:  # noqa: ASYNC109
        """Start the thread, and wait for the connection.

        Raises:
            NotConnectedError: There was none within so many seconds. The thread has ended.
        """
        self._thread = threading.Thread(target=self._run, name="backplane nats", daemon=True)
        self._thread.start()
        try:
            await outlast(lambda: self._running or self._over, self._wait)
            with anyio.move_on_after(timeout):
                while not (self.connected or self._over or self._refused):
                    await self._wait()
        except BaseException:
            await self.stop()
            raise
        if not self.connected:
            await self.stop()
            error = self._refused or self.error
            why = "it does not answer" if error is None else str(error) or type(error).__name__
            raise self._no_connection("connect with the NATS server", why) from error

    async def stop(self) -> None:
        """Send what waits, if that can be done soon, and end."""
        self._stopping = True
        if self._running:
            self._stopper.wake()
        await outlast(lambda: self._over, self._wait)
        self._thread.join()  # it has nothing left to do

    async def subscribe(self, subject: str, hear: Hear) -> None:
        """Have what is sent to a subject heard, from now until ``unsubscribe``.

        Raises:
            NotConnectedError: The server does not confirm it.
        """
        self._hear[subject] = hear
        self._inside.wake()
        try:
            with anyio.move_on_after(_SUBSCRIBING):
                while subject not in self._in_force and self.connected:
                    await self._wait()
            if subject not in self._in_force:
                raise self._no_connection("subscribe", "the NATS server does not confirm it")
        except BaseException:
            self.unsubscribe(subject)
            raise

    async def _wait(self) -> None:
        """Until something has happened in the thread."""
        parking = new_parking()
        self._waiters.append(parking)
        try:
            # It may have happened just before; that is no reason to look often.
            await parking.park_until(anyio.current_time() + 0.1)
        finally:
            self._waiters.remove(parking)

    def _no_connection(self, attempt: str, why: str) -> NotConnectedError:
        servers = ", ".join(server.rpartition("@")[2] for server in self._servers)
        return NotConnectedError(servers, f"{attempt} at {servers}", why)

    # -- for any thread ----------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is a connection with a server now."""
        return self._client is not None and self._client.is_connected and not self._over

    @property
    def max_payload(self) -> int:
        """Bytes that the server takes in one datagram."""
        assert self._client is not None
        return self._client.max_payload

    def publish(self, subject: str, data: bytes, reply: str = "") -> bool:
        """Have a datagram sent, after those before it; False if it surely is not."""
        with self._lock:
            if self._over or self._out_bytes + len(data) > self._most_waiting:
                self.dropped += 1
                return False
            self._out_bytes += len(data)
        self._out.append((subject, data, reply))
        self._inside.wake()
        return True

    def unsubscribe(self, subject: str) -> None:
        """Have it heard no longer."""
        self._hear.pop(subject, None)
        self._inside.wake()

    # -- in the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            anyio.run(self._main, backend="asyncio")
        except BaseException as error:
            self.error = error
            _logger.exception("the thread of the NATS client has failed")
        finally:
            self._over = True
            self._tell()

    def _tell(self) -> None:
        for waiter in list(self._waiters):
            waiter.wake()

    async def _main(self) -> None:
        self._inside, self._stopper = new_parking(), new_parking()
        self._running = True
        self._tell()
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._stay_connected)
            while not self._stopping:
                await self._stopper.park()
            with anyio.move_on_after(_CLOSING):
                while self._out and self.connected:
                    await self._stopper.park()
            tg.cancel_scope.cancel()

    async def _stay_connected(self) -> None:
        """Have one client after the other; each connects again by itself, if it can."""
        while True:
            client = Client()
            try:
                await client.connect(
                    self._servers,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_change,
                    reconnected_cb=self._on_reconnected,
                    closed_cb=self._on_change,
                    **self._options,
                )
                self._on_connected(client)
                await self._serve(client)
            except (nats.errors.Error, OSError, TimeoutError) as error:
                await self._on_error(error)
            finally:
                self._in_force.clear()
                with anyio.move_on_after(_CLOSING, shield=True):
                    await client.close()
            _logger.warning("no connection with the NATS server: %s", self.error)
            await anyio.sleep(_AGAIN)

    def _on_connected(self, client: Client) -> None:
        self._client = client
        self.connections += 1

    async def _on_reconnected(self) -> None:
        self.connections += 1
        await self._on_change()

    async def _on_change(self) -> None:
        self._inside.wake()
        self._tell()

    async def _on_error(self, error: Exception) -> None:
        self.error = error
        _logger.info("NATS: %s: %s", type(error).__name__, error)
        if "authorization" in str(error).lower():  # often of no more exact a class
            self._refused = error
            self._tell()

    async def _serve(self, client: Client) -> None:
        """Do what is to be done with a client, until it is closed."""
        subscriptions: dict[str, Subscription] = {}
        while not client.is_closed:
            if client.is_connected:
                await self._subscribe(client, subscriptions)
                while self._out and client.is_connected:
                    await self._publish(client, *self._out.popleft())
            if self._stopping:
                self._stopper.wake()
            self._tell()
            await self._inside.park()

    async def _subscribe(self, client: Client, subscriptions: dict[str, Subscription]) -> None:
        """Make subscriptions what they are to be, and wait until the server knows them."""
        for subject in set(subscriptions) - set(self._hear):
            self._in_force.discard(subject)
            await subscriptions.pop(subject).unsubscribe()
        new = set(self._hear) - self._in_force
        for subject in new - set(subscriptions):
            subscriptions[subject] = await client.subscribe(subject, cb=self._hearer(subject))
        if new:
            try:
                await client.flush(_SUBSCRIBING)
            except nats.errors.FlushTimeoutError as error:
                await self._on_error(error)
            else:
                self._in_force |= new

    def _hearer(self, subject: str) -> Callable[[Msg], Any]:
        async def hear(message: Msg) -> None:
            fn = self._hear.get(subject)
            if fn is not None:
                fn(message.subject, message.data, (message.headers or {}).get("Status"))

        return hear

    async def _publish(self, client: Client, subject: str, data: bytes, reply: str) -> None:
        try:
            await client.publish(subject, data, reply)
        except nats.errors.Error as error:
            self.dropped += 1
            await self._on_error(error)
        finally:
            with self._lock:
                self._out_bytes -= len(data)
