"""Sockets: files that are nobody else's, listeners that stay, and what is set on connections."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.stapled import MultiListener

from backplane.bridge import AddressError, _asyncio_stream
from backplane.bridge._addresses import MOST_PATH, Address, parse
from backplane.bridge._sockets import SocketStream, adopt
from backplane.bridge._transports import dial, listen, source_of, tune
from backplane.lowlevel import checkpoint

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from nodes import pair, until
else:
    from .nodes import pair, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_socket_left")]

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else, too")


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[list[int]]:
    """The modes of all sockets that others can see in a folder, as often as one can look."""
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    seen.append(entry.stat(follow_symlinks=False).st_mode)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


async def test_a_socket_file_is_its_owners_from_the_very_start(tmp_path: Path) -> None:
    address = Address("unix", str(tmp_path / "s"))

    with umask(0), watching(tmp_path) as seen:
        for _ in range(20):
            listener, _, remove = await listen(address)
            assert stat.S_IMODE(os.stat(address.host).st_mode) == 0o600
            looks = len(seen)
            await until(lambda looks=looks: len(seen) > looks)  # type: ignore[misc]  # others can look
            remove()
            await listener.aclose()

    assert {mode for mode in seen if stat.S_IMODE(mode) & 0o077} == set()
    assert os.listdir(tmp_path) == []


async def test_the_umask_of_the_process_is_left_alone(tmp_path: Path) -> None:
    masks: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            status = Path("/proc/self/status").read_text()
            masks.append(int(status.split("Umask:")[1].split()[0], 8))

    thread = threading.Thread(target=look)
    with umask(0o022):
        thread.start()
        await until(lambda: masks)
        for number in range(20):
            listener, _, remove = await listen(Address("unix", str(tmp_path / str(number))))
            remove()
            await listener.aclose()
        over.set()
        thread.join()

    assert set(masks) == {0o022}


async def test_a_file_whose_listener_has_died_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()

    listener, _, remove = await listen(Address("unix", str(path)))
    async with listener:
        stream = await dial(Address("unix", str(path)))
        await stream.aclose()
        remove()
    assert not path.exists()


async def test_a_file_whose_listener_lives_is_not(tmp_path: Path) -> None:
    address = Address("unix", str(tmp_path / "s"))
    listener, _, remove = await listen(address)
    async with listener:
        with pytest.raises(OSError, match="somebody listens at"):
            await listen(address)

        stream = await dial(address)
        await stream.aclose()
        assert sorted(os.listdir(tmp_path)) == ["s"]
        remove()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")

    with pytest.raises(AddressError, match="is no socket"):
        await listen(Address("unix", str(path)))

    assert path.read_text() == "data"
    assert os.listdir(tmp_path) == ["precious"]


async def test_a_listener_that_is_too_busy_to_answer_lives(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as stack:
        busy.bind(path)
        busy.listen(0)
        while True:
            caller = stack.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            try:
                caller.connect(path)
            except BlockingIOError:
                break

        with pytest.raises(OSError, match="somebody listens at"):
            await listen(Address("unix", path))

        assert os.listdir(tmp_path) == ["s"]


async def test_the_file_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first, _, remove_first = await listen(Address("unix", str(path)))
    path.unlink()
    second, _, remove_second = await listen(Address("unix", str(path)))

    remove_first()
    assert path.exists()
    remove_second()
    assert not path.exists()
    remove_second()
    await first.aclose()
    await second.aclose()


# -- streams ------------------------------------------------------------------------------------


def joined(kind: str) -> tuple[socket.socket, socket.socket]:
    """Two sockets whose ends are joined."""
    if kind == "unix":
        return socket.socketpair(socket.AF_UNIX)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname())
        return dialled, listener.accept()[0]


async def made_by_adopt(raw: socket.socket) -> ByteStream:
    raw.setblocking(False)
    return await adopt(raw)


async def made_by_hand(raw: socket.socket) -> ByteStream:
    return SocketStream(raw)


Make = Callable[[socket.socket], Awaitable[ByteStream]]


@pytest.fixture(params=["unix", "tcp"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    both = joined(request.param)
    with both[0], both[1]:
        yield both


of_every_make = pytest.mark.parametrize("make", [made_by_adopt, made_by_hand])


async def send_until_it_breaks(stream: ByteStream) -> None:
    with anyio.fail_after(20), contextlib.suppress(anyio.BrokenResourceError):
        while True:
            await stream.send(b"x")
            await checkpoint()


@of_every_make
async def test_what_was_closed_here_is_told(
    make: Make, ends: tuple[socket.socket, socket.socket]
) -> None:
    stream = await make(ends[0])
    await stream.aclose()
    await stream.aclose()

    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
    with pytest.raises(anyio.ClosedResourceError):
        await stream.send(b"x")
    assert ends[0].fileno() < 0


@of_every_make
async def test_what_was_lost_is_told_when_all_is_read(
    make: Make, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = ends
    stream = await make(ours)
    await stream.send(b"never read")
    theirs.send(b"unread")
    theirs.close()

    assert await stream.receive() == b"unread"
    for _ in range(2):
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await stream.receive()
    await send_until_it_breaks(stream)
    for _ in range(2):
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x")
    await stream.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await stream.send(b"x")


@of_every_make
async def test_a_stream_writes_all_and_says_that_it_is_over(
    make: Make, ends: tuple[socket.socket, socket.socket]
) -> None:
    here, there = await make(ends[0]), await make(ends[1])
    data = os.urandom(3 << 20)
    got = b""
    async with here, there, anyio.create_task_group() as tg:

        async def write() -> None:
            await here.send(data)
            await here.send_eof()

        tg.start_soon(write)
        with anyio.fail_after(20):
            async for part in there:
                got += part
            await there.send(b"heard")  # it is closed one way only
            assert await here.receive() == b"heard"
    assert got == data


@of_every_make
async def test_waiting_for_a_stream_can_be_cancelled(
    make: Make, ends: tuple[socket.socket, socket.socket]
) -> None:
    here, there = await make(ends[0]), await make(ends[1])
    async with here, there:
        for _ in range(2):
            with anyio.move_on_after(0.01) as scope:
                await here.receive()
            assert scope.cancelled_caught
        await there.send(b"abc")
        assert await here.receive(2) == b"ab"
        assert await here.receive() == b"c"
        with anyio.move_on_after(0.01) as scope:
            await here.send(bytes(1 << 24))
        assert scope.cancelled_caught
        assert await there.receive(1) == b"\0"


@of_every_make
async def test_who_is_cancelled_as_something_comes_has_not_taken_it(
    make: Make, ends: tuple[socket.socket, socket.socket]
) -> None:
    here, there = await make(ends[0]), await make(ends[1])
    taken = b""
    async with here, there:
        for number in range(100):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tg:

                    async def read() -> None:
                        nonlocal taken
                        taken += await here.receive(1)

                    tg.start_soon(read)
                    await there.send(bytes([number]))
                    for _ in range(number % 7):
                        await checkpoint()
                    scope.cancel()
        with anyio.fail_after(20):
            while len(taken) < 100:
                taken += await here.receive()
    assert taken == bytes(range(100))


@of_every_make
async def test_who_does_not_read_slows_the_other_down(
    make: Make, ends: tuple[socket.socket, socket.socket]
) -> None:
    here, there = await make(ends[0]), await make(ends[1])
    sent = 0

    async def write() -> None:
        nonlocal sent
        while True:
            await here.send(bytes(1 << 16))
            sent += 1 << 16

    async with here, there, anyio.create_task_group() as tg:
        tg.start_soon(write)
        assert await there.receive(1) == b"\0"
        before = -1
        with anyio.fail_after(20):
            while before != sent:  # what the system takes for both ends is all that goes
                before = sent
                await anyio.sleep(0.2)
            assert sent < 1 << 25
            for _ in range(sent // (1 << 16) + 10):
                await there.receive()
        tg.cancel_scope.cancel()
    assert sent > before


@of_every_make
async def test_who_takes_little_at_a_time_gets_all(
    make: Make, ends: tuple[socket.socket, socket.socket]
) -> None:
    here, there = await make(ends[0]), await make(ends[1])
    data = os.urandom(5000)
    async with here, there:
        await here.send(data)
        await here.aclose()
        got = []
        with anyio.fail_after(20), contextlib.suppress(anyio.EndOfStream):
            while True:
                got.append(await there.receive(999))
    assert b"".join(got) == data
    assert max(map(len, got)) <= 999


async def test_what_is_closed_while_somebody_waits_is_told_to_him(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    here, there = await made_by_adopt(ends[0]), await made_by_adopt(ends[1])
    if isinstance(here, SocketStream):
        await here.aclose()
        await there.aclose()
        pytest.skip("it is not to be closed then")
    raised: list[type[Exception]] = []

    async def wait(what: Callable[[], Awaitable[object]]) -> None:
        try:
            await what()
        except Exception as error:
            raised.append(type(error))

    async with there, anyio.create_task_group() as tg:
        tg.start_soon(wait, here.receive)
        tg.start_soon(wait, lambda: here.send(bytes(1 << 24)))
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await here.receive()
        with pytest.raises(anyio.BusyResourceError):
            await here.send(b"x")
        await here.aclose()
    assert raised == [anyio.ClosedResourceError] * 2


async def test_what_is_lost_while_somebody_waits_is_told_to_him() -> None:
    ours, theirs = joined("tcp")
    here = await made_by_adopt(ours)
    raised: list[Exception] = []

    async def wait(what: Callable[[], Awaitable[object]]) -> None:
        try:
            await what()
        except Exception as error:
            raised.append(error)

    with theirs:
        if isinstance(here, SocketStream):
            await here.aclose()
            pytest.skip("the system tells one of them only")
        async with here, anyio.create_task_group() as tg:
            tg.start_soon(wait, here.receive)
            tg.start_soon(wait, lambda: here.send(bytes(1 << 24)))
            await anyio.wait_all_tasks_blocked()
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()  # it resets
    assert [type(error) for error in raised] == [anyio.BrokenResourceError] * 2
    assert all(isinstance(error.__cause__, OSError) for error in raised)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True)
async def test_of_a_name_the_first_address_is_taken_that_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener, bound, _ = await listen(parse("tcp://127.0.0.1:0"))
    with socket.socket() as silent, socket.socket() as refuses, contextlib.ExitStack() as stack:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        refuses.bind(("127.0.0.1", 0))
        for _ in range(3):  # its queue is full: who calls now hears nothing
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(silent.getsockname())
        named = [refuses.getsockname(), silent.getsockname(), ("127.0.0.1", bound.port)]

        async def addresses(host: str, port: int) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in named]

        monkeypatch.setattr(_asyncio_stream, "_addresses", addresses)
        async with listener:
            with anyio.fail_after(20):
                stream = await dial(Address("tcp", "name", 1))
            assert stream.extra(SocketAttribute.remote_address)[1] == bound.port
            await stream.aclose()
        del named[1:]
        with pytest.raises(ConnectionRefusedError):
            await dial(Address("tcp", "name", 1))


# -- files and ports ----------------------------------------------------------------------------


async def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await listen(Address("unix", str(tmp_path / "missing" / "s")))


async def test_a_folder_may_be_so_deep_and_no_deeper() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        deep = os.path.join(top, "d" * (MOST_PATH - len("/.12345678/s") - len(top) - 1))
        os.mkdir(deep)
        address = parse(f"unix://{deep}/s")
        listener, _, remove = await listen(address)
        async with listener:
            await (await dial(address)).aclose()
            remove()

        os.mkdir(f"{deep}d")
        with pytest.raises(AddressError, match="takes a folder whose path has"):
            await listen(parse(f"unix://{deep}d/s"))


async def test_a_port_of_the_systems_choice_is_told() -> None:
    listener, bound, remove = await listen(parse("tcp://127.0.0.1:0"))
    async with listener:
        assert bound.port > 0
        stream = await dial(bound)
        await stream.aclose()
        remove()


async def test_a_name_with_several_numbers_is_listened_at_once() -> None:
    listener, bound, _ = await listen(parse("tcp://localhost:0"))
    async with listener:
        assert bound.port > 0


async def test_one_port_is_told_and_the_others_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name may have an old number and a new one, with a port each."""
    create = anyio.create_tcp_listener
    made: list[Any] = []
    ports: list[int] = []

    async def create_two(**options: Any) -> MultiListener[Any]:
        for _ in range(2):
            made.extend((await create(local_host="127.0.0.1")).listeners)
        ports.extend(each.extra(SocketAttribute.local_port) for each in made)
        return MultiListener(made)

    monkeypatch.setattr(anyio, "create_tcp_listener", create_two)

    listener, bound, _ = await listen(parse("tcp://localhost:0"))

    async with listener:
        assert bound.port == ports[0]
        with pytest.raises(OSError, match=r"refused|failed"):
            await dial(bound.with_port(ports[1]))


async def test_a_taken_port_is_told() -> None:
    listener, bound, _ = await listen(parse("tcp://127.0.0.1:0"))
    async with listener:
        with pytest.raises(OSError, match="in use"):
            await listen(bound)


async def accepted(address: Address, use: Callable[[Any, Any, Address], None]) -> None:
    """Make a connection, and use its both ends."""
    listener, bound, remove = await listen(address)
    async with listener:
        async with anyio.create_task_group() as tg:
            made: list[Any] = []

            async def accept() -> None:
                made.append(await listener.accept())

            tg.start_soon(accept)
            made.append(await dial(bound))
        try:
            use(made[0], made[1], bound)
        finally:
            for stream in made:
                await stream.aclose()
            remove()


async def test_who_comes_by_tcp_is_known_by_his_address() -> None:
    def use(one: Any, other: Any, bound: Address) -> None:
        assert source_of(one, bound) == source_of(other, bound) == "127.0.0.1"

    await accepted(parse("tcp://127.0.0.1:0"), use)


async def test_who_comes_by_a_file_is_known_by_his_process(tmp_path: Path) -> None:
    def use(one: Any, other: Any, bound: Address) -> None:
        assert source_of(one, bound) == source_of(other, bound) == f"unix process {os.getpid()}"

    await accepted(Address("unix", str(tmp_path / "s")), use)


async def test_the_files_mode_has_to_do_where_the_system_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(one: Any, other: Any, bound: Address) -> None:
        monkeypatch.delattr(socket, "SO_PEERCRED")
        assert source_of(one, bound) == "unix"

    await accepted(Address("unix", str(tmp_path / "s")), use)


async def test_what_is_no_socket_comes_from_nobody_of_this_machine() -> None:
    here, there = pair()
    async with here, there:
        assert source_of(here, parse("unix:///s")) is None
        assert source_of(here, parse("tcp://127.0.0.1:1")) == "?"
        tune(here, 1.5)


async def test_a_connection_is_tuned() -> None:
    def use(one: Any, other: Any, bound: Address) -> None:
        tune(one, 1.5)
        raw = one.extra(SocketAttribute.raw_socket)
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in (1 << 17, 1 << 18)

    await accepted(parse("tcp://127.0.0.1:0"), use)


async def test_what_is_no_tcp_socket_is_tuned_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(one: Any, other: Any, bound: Address) -> None:
        tune(one, 1.5)
        raw = one.extra(SocketAttribute.raw_socket)
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in (1 << 17, 1 << 18)

    await accepted(Address("unix", str(tmp_path / "s")), use)
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    await accepted(parse("tcp://127.0.0.1:0"), lambda one, other, bound: tune(one, 1.5))


async def test_a_connection_that_is_closed_already_can_be_tuned() -> None:
    listener, bound, _ = await listen(parse("tcp://127.0.0.1:0"))
    async with listener:
        stream = await dial(bound)
        await stream.aclose()
        tune(stream, 1.5)
