"""By hand: frames with their length in front, on the same kind of socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import msgspec
import trio
from _bridge_cases import Ends, Kind, Kit, fars
from _bridge_work import Counter, question

pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder().decode


def frame(value: Any) -> bytes:
    body = pack(value)
    return len(body).to_bytes(4, "big") + body


class Frames:
    """Takes them apart again."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[Any]:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            end = start + 4 + int.from_bytes(buffer[start : start + 4], "big")
            if len(buffer) < end:
                break
            yield unpack(bytes(buffer[start + 4 : end]))
            start = end
        del buffer[:start]


def answers(frames: Frames, counter: Counter, data: bytes | bytearray) -> bytes:
    """What a server has to say to some bytes: a message has number 0, a request its own."""
    said = []
    for number, body in frames.feed(data):
        if number:
            said.append(frame([number, counter.answer(body)]))
        else:
            counter.take(body)
    return b"".join(said)


# -- asyncio -----------------------------------------------------------------------------


def no_delay(transport: Any) -> None:
    sock = transport.get_extra_info("socket")
    if sock.family != getattr(socket, "AF_UNIX", None):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Server(asyncio.Protocol):
    def __init__(self) -> None:
        self._frames, self._counter = Frames(), Counter()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        no_delay(transport)

    def data_received(self, data: bytes) -> None:
        if said := answers(self._frames, self._counter, data):
            self._transport.write(said)


async def serve_asyncio(ready: Callable[[object], None], directory: str) -> None:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(Server, "127.0.0.1", 0)
    await loop.create_unix_server(Server, f"{directory}/s")
    ready({"tcp": listener.sockets[0].getsockname()[1], "unix": f"{directory}/s"})
    await asyncio.Event().wait()


class Client(asyncio.Protocol):
    """Sends frames, and brings the answers to those who wait."""

    def __init__(self) -> None:
        self._frames, self._numbers = Frames(), count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._room: asyncio.Future[None] | None = None
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        no_delay(transport)

    def data_received(self, data: bytes) -> None:
        for number, body in self._frames.feed(data):
            self._waiting.pop(number).set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._room is not None:
            self._room.set_result(None)
            self._room = None

    async def tell(self, n: int) -> None:
        for i in range(n):
            if self._room is not None:
                await self._room
            self.transport.write(frame([0, question(i)]))

    async def ask(self, body: Any) -> Any:
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self.transport.write(frame([number, body]))
        return await future


async def connect_to(kind: Kind, address: Any) -> Client:
    loop = asyncio.get_running_loop()
    if kind == "tcp":
        return (await loop.create_connection(Client, "127.0.0.1", address))[1]
    return (await loop.create_unix_connection(Client, address))[1]


@asynccontextmanager
async def near_asyncio(kind: Kind) -> AsyncIterator[Ends]:
    client = await connect_to(kind, fars.get("_bridge_raw:serve_asyncio")[kind])

    async def ask(number: int) -> int:
        return int(await client.ask(question(number)))

    async def told() -> int:
        return int(await client.ask(None))

    yield Ends(ask, client.tell, told)
    client.transport.close()
    await client.lost


# -- trio --------------------------------------------------------------------------------


async def answer_stream(stream: Any) -> None:
    frames, counter = Frames(), Counter()
    try:
        async for data in stream:
            if said := answers(frames, counter, data):
                await stream.send_all(said)
    except trio.BrokenResourceError:
        pass


async def serve_trio(ready: Callable[[object], None], directory: str) -> None:
    unix = trio.socket.socket(socket.AF_UNIX)
    await unix.bind(f"{directory}/s")
    unix.listen()
    [tcp] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    ready({"tcp": tcp.socket.getsockname()[1], "unix": f"{directory}/s"})
    await trio.serve_listeners(answer_stream, [tcp, trio.SocketListener(unix)])


async def open_trio(kind: Kind, address: Any) -> trio.SocketStream:
    if kind == "tcp":
        return await trio.open_tcp_stream("127.0.0.1", address)
    return await trio.open_unix_socket(address)


@asynccontextmanager
async def near_trio(kind: Kind) -> AsyncIterator[Ends]:
    address = fars.get("_bridge_raw:serve_trio")[kind]
    async with await open_trio(kind, address) as stream, trio.open_nursery() as nursery:
        waiting: dict[int, Any] = {}
        numbers, lock = count(1), trio.Lock()

        async def read() -> None:
            frames = Frames()
            async for data in stream:
                for number, body in frames.feed(data):
                    event, _ = waiting[number]
                    waiting[number] = event, body
                    event.set()

        async def request(body: Any) -> int:
            number = next(numbers)
            event, _ = waiting[number] = trio.Event(), None
            async with lock:
                await stream.send_all(frame([number, body]))
            await event.wait()
            return int(waiting.pop(number)[1])

        async def ask(number: int) -> int:
            return await request(question(number))

        async def told() -> int:
            return await request(None)

        async def tell(n: int) -> None:
            for i in range(n):
                await stream.send_all(frame([0, question(i)]))

        nursery.start_soon(read)
        yield Ends(ask, tell, told)
        nursery.cancel_scope.cancel()


Kit("asyncio Protocol, msgspec", "asyncio", near_asyncio).add()
Kit("trio streams, msgspec", "trio", near_trio).add()
