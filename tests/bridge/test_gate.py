"""How connections come in and go out: strangers, limits, dialling, and who came first."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from backplane import Device, Disconnected
from backplane.bridge import (
    AddressError,
    AuthError,
    BridgeError,
    DuplicateError,
    ExportError,
    FrameError,
    FullError,
    Limits,
    NameTakenError,
    Node,
    NodeDown,
    NodeUp,
    NotConnectedError,
    Peer,
    ProofRefusedError,
    Retry,
    VersionError,
    call,
)
from backplane.bridge._addresses import parse
from backplane.bridge._errors import PerhapsTakenError
from backplane.bridge._frames import Find, Hello, encode
from backplane.bridge._gate import Gate, persist
from backplane.bridge._transports import dial
from backplane.lowlevel import checkpoint

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from nodes import (
        SECRET,
        Desk,
        Papers,
        Puppet,
        Way,
        monitor,
        news,
        own_host,
        pair,
        told_error,
        until,
    )
else:
    from .nodes import (
        SECRET,
        Desk,
        Papers,
        Puppet,
        Way,
        monitor,
        news,
        own_host,
        pair,
        told_error,
        until,
    )

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("discreet", "no_socket_left", "nothing_of_nodes_left"),
]
two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
virtual = pytest.mark.parametrize(
    "anyio_backend", ["virtual asyncio", "virtual trio"], indirect=True
)
by_tcp = pytest.mark.parametrize("way", ["tcp"], indirect=True)
by_tls = pytest.mark.parametrize("way", ["tls"], indirect=True)
by_socket = pytest.mark.parametrize("way", ["tcp", "unix", "tls"], indirect=True)
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else, too")

OTHER = bytes(range(100, 132))
LOCAL = "tcp://127.0.0.1:0"


async def rest(stream: ByteStream) -> bytes:
    """All that still comes, until the other side closes."""
    got = b""
    with anyio.fail_after(20):
        try:
            while True:
                got += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, ssl.SSLError):
            return got


async def meets(node: Node, names: set[str]) -> None:
    """Wait until a node has these peers."""
    await until(lambda: {peer.name for peer in node.peers()} == names)


# -- who is turned away ----------------------------------------------------------------------


async def test_a_peer_with_another_secret_is_refused(
    way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    async with way.node("a", secret=OTHER) as a, way.node("b") as b:
        if way.kind == "memory":
            here, there = pair()
            async with anyio.create_task_group() as tg:

                async def answer() -> None:
                    with pytest.raises(AuthError, match="'a' has another secret") as caught:
                        await b.attach(there, dial=False)
                    told_error(caught.value)

                tg.start_soon(answer)
                with pytest.raises(NotConnectedError, match="whose secret is another") as caught:
                    await a.attach(here, dial=True)
        else:
            address = await b.listen(way.address())
            with pytest.raises(NotConnectedError, match="whose secret is another") as caught:
                await a.connect(address, expect="b")

        told_error(caught.value)
        told_error(caught.value, OTHER)
        await until(lambda: b.stats().refused)
        assert b.stats().refused == {"AuthError": 1}
        assert a.stats().refused == {"ProofRefusedError": 1}
        assert (a.peers(), b.peers()) == ([], [])
        assert "'a' has another secret" in caplog.text


@two_loops
async def test_the_answerer_is_refused_too_if_it_does_not_know_the_secret() -> None:
    """It accepts what the dialler proves, since it accepts anybody, but cannot prove itself."""
    async with Node("a", secret=SECRET) as a, Node("b", secret=[OTHER, SECRET]) as b:
        a_knows_other = await a.connect(await b.listen(LOCAL))
        assert a_knows_other.name == "b"  # b proves the one that a has proved

    async with Node("a", secret=SECRET) as a:
        here, there = pair()
        liar = Puppet(there, dialled=False)
        async with anyio.create_task_group() as tg:

            async def dial_liar() -> None:
                with pytest.raises(AuthError, match="'b' has another secret"):
                    await a.attach(here, dial=True, expect="b")

            tg.start_soon(dial_liar)
            await liar.read()
            await liar.write()
            await liar.read()
            from backplane.bridge._frames import Proof

            await there.send(encode(Proof(b"x" * 32), 4096))
            assert await rest(there) == b""
        await there.aclose()


@two_loops
async def test_secrets_can_be_changed_one_node_after_the_other() -> None:
    async with (
        Node("old", secret=OTHER) as old,
        Node("both", secret=[SECRET, OTHER]) as both,
        Node("new", secret=SECRET) as new,
    ):
        address = await both.listen(LOCAL)

        await old.connect(address)
        await new.connect(address)

        await meets(both, {"old", "new"})


@two_loops
async def test_a_peer_with_a_secret_of_its_own_needs_that_one() -> None:
    async with (
        Node("a", secret=SECRET, secrets={"b": OTHER}) as a,
        Node("b", secret=OTHER) as b,
        Node("c", secret=SECRET) as c,
    ):
        address = await a.listen(LOCAL)
        await b.connect(address)
        await c.connect(address)
        async with Node("b", secret=SECRET) as impostor:
            with pytest.raises(NotConnectedError):
                await impostor.connect(address)

        await meets(a, {"b", "c"})


@two_loops
async def test_who_is_not_named_is_a_stranger_where_only_some_have_secrets(tmp_path: Path) -> None:
    async with Node("a", secrets={"b": OTHER}) as a, Node("b", secret=OTHER) as b:
        for address in (await a.listen(LOCAL), await a.listen(f"unix://{tmp_path}/s")):
            async with Node("c") as c:
                here = await dial(parse(address))
                with pytest.raises(NotConnectedError):
                    await c.attach(here, dial=True)

        await b.connect(address)
        await meets(a, {"b"})


@two_loops
async def test_a_node_without_a_secret_uses_a_unix_socket(tmp_path: Path) -> None:
    async with Node("a") as a, Node("b") as b:
        await a.connect(await b.listen(f"unix://{tmp_path}/s"))

        await meets(b, {"a"})


@by_socket
@two_loops
async def test_another_name_than_expected_is_refused(way: Way) -> None:
    async with way.node("a") as a, way.node("b") as b:
        address = await b.listen(way.address())

        with pytest.raises(AuthError, match=r"'c' was expected at \S+, the peer is 'b'"):
            await a.connect(address, expect="c", retry=Retry())

        await until(lambda: b.stats().refused)
        assert b.peers() == []


@two_loops
async def test_a_node_does_not_connect_with_itself_nor_with_another_of_its_name() -> None:
    async with Node("a", secret=SECRET) as a, Node("a", secret=SECRET) as other:
        for address in (await a.listen(LOCAL), await other.listen(LOCAL)):
            with pytest.raises((AuthError, NotConnectedError)):
                await a.connect(address)
        assert a.peers() == other.peers() == []


@two_loops
async def test_another_version_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with Node("a", secret=SECRET) as a:
        stream = await dial(parse(await a.listen(LOCAL)))
        await stream.send(encode(Hello([7], "b", b"i" * 16, b"n" * 32, 0.1, 1 << 20), 4096))
        assert await rest(stream) == b""
        await stream.aclose()
        await until(lambda: a.stats().refused)
        assert a.stats().refused == {"VersionError": 1}
    (said,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert said.getMessage().endswith(" speaks versions [7], not 1")


@two_loops
async def test_a_peer_whose_heart_beats_too_slowly_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        Node("a", secret=SECRET, heartbeat=0.1, dead_after=0.5) as a,
        Node("b", secret=SECRET, heartbeat=5) as b,
    ):
        with pytest.raises(VersionError, match="too slow for dead_after"):
            await a.connect(await b.listen(LOCAL))
        with pytest.raises(NotConnectedError):
            await b.connect(await a.listen(LOCAL))
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len([text for text in said if text.startswith("node 'a': no connection with ")]) == 2
    assert all("the heartbeat of node 'b', 5.0 s, is too slow" in text for text in said)


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
    "zeros": bytes(4096),
    "no frame": (3).to_bytes(4, "big") + b"\xc1\xc1\xc1",
    "too large": (4097).to_bytes(4, "big") + bytes(4097),
    "enormous": b"\xff\xff\xff\xff",
    "out of place": encode(Find(1, "jobs"), 4096),
    "tls": bytes.fromhex("160301020001"),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_who_talks_garbage_is_closed_without_a_word(garbage: bytes) -> None:
    async with Node("a", secret=SECRET) as a:
        stream = await dial(parse(await a.listen(LOCAL)))

        await stream.send(garbage)

        assert await rest(stream) == b""
        await stream.aclose()
        await until(lambda: not a.stats().handshakes)
        assert a.stats().refused == {"FrameError": 1}


@by_tcp
async def test_garbage_from_a_peer_ends_that_connection_alone(way: Way) -> None:
    async with way.pair() as world:
        puppet = await Puppet.dial(await world.a.listen(LOCAL), "c")
        await meets(world.a, {"b", "c"})
        to_c = monitor(world.a.peer("c").line())
        await puppet.stream.send(((1 << 20) + 1).to_bytes(4, "big"))
        assert isinstance(await news(to_c), Disconnected)
        await puppet.stream.aclose()

        assert world.to_b.connected
        await world.reach(Device())


async def test_who_says_nothing_is_closed_in_time() -> None:
    async with Node("a", secret=SECRET, limits=Limits(handshake=0.1)) as a:
        stream = await dial(parse(await a.listen(LOCAL)))

        assert await rest(stream) == b""

        await stream.aclose()
        await until(lambda: a.stats().refused)
        assert a.stats().refused == {"TimeoutError": 1}


async def test_who_talks_slowly_is_closed_in_time() -> None:
    """One byte at a time does not buy more time."""
    async with Node("a", secret=SECRET, limits=Limits(handshake=0.5)) as a:
        stream = await dial(parse(await a.listen(LOCAL)))
        hello = encode(Hello([1], "b", b"i" * 16, b"n" * 32, 0.1, 1 << 20), 4096)
        sent = 0
        with anyio.fail_after(20), contextlib.suppress(anyio.BrokenResourceError):
            for byte in hello:
                await stream.send(bytes([byte]))
                sent += 1
                await anyio.sleep(0.02)

        await stream.aclose()
        assert sent < len(hello)
        assert a.stats().refused == {"TimeoutError": 1}


@virtual
async def test_who_talks_slowly_has_as_long_as_who_says_nothing() -> None:
    here, there = pair()
    async with here, Node("a", secret=SECRET, limits=Limits(handshake=0.5)) as a:

        async def answer() -> None:
            with pytest.raises(TimeoutError):
                await a.attach(there, dial=False)

        sent = 0
        async with anyio.create_task_group() as tg:
            tg.start_soon(answer)
            with contextlib.suppress(anyio.BrokenResourceError):
                for byte in encode(Hello([1], "b", b"i" * 16, b"n" * 32, 0.1, 1 << 20), 4096):
                    await here.send(bytes([byte]))
                    sent += 1
                    await anyio.sleep(0.02)

        assert sent in (25, 26)
        assert a.stats().refused == {"TimeoutError": 1}


@by_tls
async def test_who_talks_tls_slowly_is_closed_in_time(way: Way) -> None:
    async with way.node("a", limits=Limits(handshake=0.1)) as a:
        stream = await dial(parse(await a.listen(way.address())))
        await stream.send(bytes.fromhex("1603010200010001fc0303"))

        assert await rest(stream) == b""

        await stream.aclose()
        await until(lambda: a.stats().refused)
        assert a.stats().refused == {"TimeoutError": 1}


@two_loops
async def test_who_dials_what_is_no_node_is_told_so() -> None:
    async with Node("a", secret=SECRET) as a:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"tcp://127.0.0.1:{server.getsockname()[1]}"

            async def answer() -> None:
                await anyio.wait_readable(server)
                stream = server.accept()[0]
                await anyio.wait_readable(stream)
                stream.recv(4096)  # what is not read would have the system reset the connection
                stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                stream.close()

            async with anyio.create_task_group() as tg:
                tg.start_soon(answer)
                with pytest.raises(
                    FrameError, match=f"what answers at {address} is no node: it speaks HTTP$"
                ):
                    await a.connect(address, retry=Retry())


async def test_a_listener_that_says_nothing_is_given_up() -> None:
    async with Node("a", secret=SECRET, limits=Limits(handshake=0.1)) as a:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            port = mute.getsockname()[1]
            with pytest.raises(TimeoutError):
                await a.connect(f"tcp://127.0.0.1:{port}")


@by_tls
async def test_a_tls_listener_that_says_nothing_is_given_up(way: Way) -> None:
    async with way.node("a", limits=Limits(handshake=1)) as a:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            port = mute.getsockname()[1]
            text = f"no TLS with tls://127.0.0.1:{port} within 1 seconds"
            with pytest.raises(TimeoutError, match=text):
                await a.connect(f"tls://127.0.0.1:{port}")


# -- certificates ----------------------------------------------------------------------------


@by_tls
@two_loops
async def test_the_log_says_that_one_end_speaks_tls_and_the_other_does_not(
    way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    async with way.node("a") as a, way.node("b") as b:
        address = await b.listen(LOCAL)
        with pytest.raises((AuthError, NotConnectedError)):
            await a.connect(address.replace("tcp", "tls"))
        await until(lambda: b.stats().refused)

    (said,) = (each for each in caplog.messages if each.startswith("node 'b': no connection"))
    assert said.endswith(": it speaks TLS: say tls:// at both ends, or at neither")


@by_tls
async def test_a_plain_dialler_gets_nothing_from_a_tls_port(way: Way) -> None:
    async with way.node("a") as a, way.node("b") as b:
        address = await b.listen(way.address())

        with pytest.raises((FrameError, NotConnectedError)):
            await a.connect(address.replace("tls", "tcp"))

        await until(lambda: b.stats().refused)
        assert b.stats().refused == {"AuthError": 1}


@by_tls
async def test_a_tls_dialler_gets_nothing_from_a_plain_port(way: Way) -> None:
    async with way.node("a") as a, way.node("b") as b:
        address = await b.listen(LOCAL)

        with pytest.raises((AuthError, NotConnectedError)):
            await a.connect(address.replace("tcp", "tls"))

        await until(lambda: b.stats().refused)
        assert b.stats().refused == {"FrameError": 1}


@by_tls
async def test_a_foreign_certificate_is_refused_by_either_side(way: Way, papers: Papers) -> None:
    foreign = papers.tls("a", foreign=True)
    async with way.node("a", tls=foreign) as a, way.node("b") as b:
        with pytest.raises(AuthError, match="certificate"):
            await a.connect(await b.listen(way.address()), retry=Retry())
        with pytest.raises((AuthError, NotConnectedError)):
            await b.connect(await a.listen(way.address()))
        await until(lambda: b.stats().refused and a.stats().refused)
        assert set(a.stats().refused) <= {"AuthError", "NotConnectedError"}


@by_tls
async def test_the_dialler_is_refused_whose_certificate_is_foreign_though_it_believes_the_other(
    way: Way, papers: Papers, caplog: pytest.LogCaptureFixture
) -> None:
    from backplane.bridge import TLS

    certificate, key, _ = papers.files("a", foreign=True)
    believing = TLS(certificate, key, papers.authority())
    async with way.node("a", tls=believing) as a, way.node("b") as b:
        with pytest.raises(NotConnectedError, match="does not believe this node's certificate"):
            await a.connect(await b.listen(way.address()))
        await until(lambda: b.stats().refused)
        assert b.stats().refused == {"AuthError": 1}
        told = "no TLS with 127.0.0.1: its certificate is not believed: "
        assert f"no connection with 127.0.0.1: {told}" in caplog.text


@by_tls
@two_loops
async def test_a_retry_is_a_retry(way: Way) -> None:
    async with way.node("a") as a:
        with pytest.raises(TypeError, match=r"not True: write retry=Retry\(\)"):
            await a.connect("tls://127.0.0.1:7000", retry=True)  # type: ignore[arg-type]


@by_tls
async def test_a_tls_alert_is_the_end_of_all_attempts(way: Way, papers: Papers) -> None:
    """Other implementations say why."""
    from backplane.bridge import TLS

    certificate, key, _ = papers.files("a", foreign=True)
    believing = TLS(certificate, key, papers.authority())
    limits = Limits(handshake=20)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            stream, _ = server.accept()
            context = papers.tls("b").server
            with context.wrap_socket(
                stream, server_side=True, do_handshake_on_connect=False
            ) as secured:
                with contextlib.suppress(ssl.SSLError):
                    secured.do_handshake()
                while socket.socket.recv(secured, 4096):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        async with way.node("a", tls=believing, limits=limits) as a:
            with pytest.raises(AuthError, match="refused this node's certificate"):
                await a.connect(f"tls://127.0.0.1:{server.getsockname()[1]}", retry=Retry())
        thread.join()


@by_tls
async def test_a_certificate_for_another_node_is_refused(way: Way, papers: Papers) -> None:
    async with way.node("a") as a, way.node("c", tls=papers.tls("b")) as c:
        with pytest.raises(AuthError, match="calls itself 'c', its certificate calls it"):
            await a.connect(await c.listen(way.address()))
        with pytest.raises(NotConnectedError):
            await c.connect(await a.listen(way.address()))
        await until(lambda: "AuthError" in a.stats().refused)


@by_tls
@two_loops
async def test_a_name_in_a_certificate_may_stand_for_a_node(way: Way, papers: Papers) -> None:
    names = papers.tls("a", names={"host-of-b": "b"})
    async with way.node("a", tls=names) as a, way.node("b", tls=papers.tls("host-of-b")) as b:
        assert (await a.connect(await b.listen(way.address()))).name == "b"


@by_tls
@two_loops
async def test_a_certificate_is_not_enough_without_the_secret(way: Way) -> None:
    async with way.node("a", secret=OTHER) as a, way.node("b") as b:
        with pytest.raises(NotConnectedError, match="secret"):
            await a.connect(await b.listen(way.address()))


@by_tls
async def test_a_relay_between_two_nodes_is_found_out(way: Way, papers: Papers) -> None:
    """It has a good certificate for the very name, and passes on each byte."""
    relay = papers.tls("b")

    async with way.node("a") as a, way.node("b", tls=papers.tls("b", again=True)) as b:
        behind = parse(await b.listen(way.address()))
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)

        async def pass_on(source: ByteStream, to: ByteStream) -> None:
            try:
                while True:
                    await to.send(await source.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                await to.aclose()

        async def serve(stream: ByteStream) -> None:
            front = await TLSStream.wrap(
                stream, server_side=True, ssl_context=relay.server, standard_compatible=False
            )
            back = await TLSStream.wrap(
                await dial(behind), server_side=False, ssl_context=relay.client,
                standard_compatible=False,
            )  # fmt: skip
            async with front, back, anyio.create_task_group() as tg:
                tg.start_soon(pass_on, front, back)
                tg.start_soon(pass_on, back, front)

        async with listener, anyio.create_task_group() as tg:
            tg.start_soon(listener.serve, serve)
            with pytest.raises(NotConnectedError):
                await a.connect(f"tls://127.0.0.1:{port}", expect="b")
            await until(lambda: b.stats().refused)
            tg.cancel_scope.cancel()

        assert b.stats().refused == {"AuthError": 1}


# -- users of this machine -------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that others reach. Those of pytest they do not, as soon as it starts once more."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@root
@two_loops
async def test_another_user_may_not_connect_even_if_he_reaches_the_file(open_folder: Path) -> None:
    code = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        "s.connect(sys.argv[1]); print(s.recv(100) == b'')"
    )
    async with Node("a") as a:
        await a.listen(f"unix://{open_folder}/s")
        (open_folder / "s").chmod(0o666)

        done = await anyio.run_process([sys.executable, "-c", code, f"{open_folder}/s"])

        assert done.stdout == b"True\n"
        assert a.stats().refused == {"stranger": 1}


@root
@two_loops
async def test_a_socket_on_which_another_user_listens_is_not_talked_to(open_folder: Path) -> None:
    code = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.chmod(sys.argv[2], 0o777);"
        "os.setuid(65534); s.bind(sys.argv[1]); s.listen(); print(flush=True);"
        "c, _ = s.accept(); sys.stdout.write(f'{c.recv(100) == b\"\"}\\n')"
    )
    command = [sys.executable, "-c", code, f"{open_folder}/s", str(open_folder)]
    async with (
        await anyio.open_process(command, stderr=subprocess.DEVNULL) as process,
        Node("a") as a,
    ):
        assert process.stdout is not None
        await process.stdout.receive()

        with pytest.raises(AuthError, match="another user listens there"):
            await a.connect(f"unix://{open_folder}/s")

        with anyio.fail_after(20):
            assert await process.stdout.receive() == b"True\n"


# -- many strangers ----------------------------------------------------------------------------


@by_tcp
async def test_a_thousand_strangers_do_no_harm(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    async with way.pair(limits=Limits(pending_per_source=8, handshake=60)) as world:
        desk = Desk(answers=lambda question: question)
        far = Device()
        line = await world.reach(far, port=desk)
        address = await world.b.listen(LOCAL)
        port = parse(address).port
        most: list[int] = []
        strangers: list[socket.socket] = []
        try:
            for number in range(1000):
                stranger = socket.socket()
                stranger.setblocking(False)
                stranger.connect_ex(("127.0.0.1", port))
                strangers.append(stranger)
                if number % 50 == 0:
                    assert await call(line, number) == number
                    most.append(world.b.stats().handshakes)
            await until(lambda: world.b.stats().refused.get("too many handshakes", 0) >= 992)
            most.append(world.b.stats().handshakes)
            assert await call(line, "still there") == "still there"
        finally:
            for stranger in strangers:
                stranger.close()

        await until(lambda: world.b.stats().handshakes == 0)
        assert max(most) == 8
        assert sum(world.b.stats().refused.values()) == 1000
        assert world.to_b.connected
        async with way.node("c") as c:
            assert (await c.connect(address)).connected
    assert sum("no connection with 127.0.0.1" in text for text in caplog.messages) <= 30


@two_loops
async def test_all_sources_together_are_limited_too() -> None:
    async with Node("a", secret=SECRET, limits=Limits(pending_handshakes=3)) as a:
        port = parse(await a.listen("tcp://127.0.0.1:0")).port
        strangers = []
        for number in range(5):
            stranger = socket.socket()
            stranger.bind((f"127.0.0.{number + 2}", 0))
            stranger.connect(("127.0.0.1", port))
            strangers.append(stranger)

        await until(lambda: a.stats().refused.get("too many handshakes") == 2)

        assert a.stats().handshakes == 3
        for stranger in strangers:
            stranger.close()
        await until(lambda: a.stats().handshakes == 0)


@two_loops
async def test_a_node_has_as_many_connections_as_it_may() -> None:
    async with Node("a", secret=SECRET, limits=Limits(sessions=2)) as a:
        address = await a.listen(LOCAL)
        async with (
            Node("b", secret=SECRET) as b,
            Node("c", secret=SECRET) as c,
            Node("d", secret=SECRET) as d,
        ):
            await b.connect(address)
            to_a = await c.connect(address)
            with pytest.raises(FullError, match="it has as many connections as it may") as caught:
                await d.connect(address)
            assert caught.value.node == "a"
            assert a.stats().refused == {"FullError": 1}

            async with anyio.create_task_group() as tg:
                tg.start_soon(lambda: d.connect(address, retry=Retry(0.001, 0.01)))
                await until(lambda: a.stats().refused["FullError"] > 4)
                to_a.close()
            await meets(a, {"b", "d"})


# -- accepting -----------------------------------------------------------------------------------


class Listener:
    """Accepts what a test wants."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.closed = False

    async def accept(self) -> Any:
        await checkpoint()
        if not self.outcomes:
            await anyio.sleep_forever()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        self.closed = True


async def test_a_listener_outlasts_what_keeps_it_from_accepting() -> None:
    broken = anyio.BrokenResourceError()
    broken.__cause__ = OSError(errno.ENFILE, "too many open files")
    here, there = pair()
    listener = Listener(
        OSError(errno.ECONNABORTED, "gone"),
        OSError(errno.EMFILE, "too many open files"),
        broken,
        anyio.BrokenResourceError(),
        there,
    )
    removed: list[bool] = []
    async with Node("a", secret=SECRET) as a, Node("b", secret=SECRET) as b:
        gate: Gate = a._gate
        where = parse(LOCAL)
        gate._start(gate._serve, listener, where, lambda: removed.append(True))
        with anyio.fail_after(20):
            peer = await b.attach(here, dial=True)

        assert peer.name == "a"
        assert a.stats().refused == {"OSError": 2, "BrokenResourceError": 1}
    assert removed == [True]
    assert listener.closed


# -- dialling --------------------------------------------------------------------------------------


@by_socket
async def test_nobody_listens(way: Way) -> None:
    async with way.node("a") as a:
        address = way.address(own_host())
        async with way.node("b") as b:
            address = await b.listen(address)
        with pytest.raises(NotConnectedError, match="nobody answers there: ") as caught:
            await a.connect(address, expect="b")
        assert caught.value.node == "b"
        assert str(caught.value).startswith(f"cannot connect with node 'b' at {address}: ")
        assert isinstance(caught.value.__cause__, OSError)


@by_socket
async def test_dialling_goes_on_until_somebody_listens(way: Way) -> None:
    async with way.node("a") as a, way.node("b") as b:
        address = await b.listen(way.address())
        async with way.node("c") as c:
            free = await c.listen(way.address(own_host()))
        assert free != address

        async with anyio.create_task_group() as tg:
            made: list[Peer] = []

            async def connect() -> None:
                made.append(await a.connect(free, retry=Retry(initial=0.001, maximum=0.01)))

            tg.start_soon(connect)
            await anyio.sleep(0.03)
            assert not made
            await b.listen(free)
        assert made[0].name == "b"


@two_loops
async def test_dialling_is_given_up_after_so_many_attempts() -> None:
    async with Node("a", secret=SECRET) as a:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(5)
            address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
            retry = Retry(initial=0.001, maximum=0.002, attempts=3)
            attempts = 0

            async def hang_up() -> None:
                nonlocal attempts
                while True:
                    await anyio.wait_readable(server)
                    server.accept()[0].close()
                    attempts += 1

            async with anyio.create_task_group() as tg:
                tg.start_soon(hang_up)
                with pytest.raises(NotConnectedError):
                    await a.connect(address, retry=retry)
                tg.cancel_scope.cancel()
        assert attempts == 3


@two_loops
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ExceptionGroup("", [ConnectionRefusedError(111, "failed")]), "Connection refused"),
        (None, "All connection attempts failed"),
    ],
)
async def test_what_the_system_says_of_a_dial_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, text: str
) -> None:
    from backplane.bridge import _gate

    async def fail(address: object) -> None:
        raise OSError("All connection attempts failed") from error

    monkeypatch.setattr(_gate, "dial", fail)
    async with Node("a", secret=SECRET) as a:
        with pytest.raises(NotConnectedError) as caught:
            await a.connect("tcp://127.0.0.1:7")
    assert str(caught.value) == (
        f"cannot connect with tcp://127.0.0.1:7: nobody answers there: {text}"
    )


@two_loops
async def test_a_peer_that_hangs_up_at_each_proof_is_not_dialled_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Node("a", secret=OTHER) as a, Node("b", secret=SECRET) as b:
        address = await b.listen(LOCAL)
        with anyio.fail_after(20), pytest.raises(ProofRefusedError) as caught:
            await a.connect(address, retry=Retry(initial=0.001, maximum=0.002))

        assert str(caught.value) == (
            f"cannot connect with node 'b' at {address}: it closed without a word when it saw "
            "this node's proof, as one does whose secret is another: its log says more"
        )
        assert caught.value.node == "b"
        assert a.stats().refused == {"ProofRefusedError": 3}
        said = [record for record in caplog.records if record.levelname == "WARNING"]
        assert [text.getMessage() for text in said].count(f"node 'a': {caught.value}") == 1


@two_loops
async def test_only_three_in_a_row_are_no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ProofRefusedError
    ends = [one, one, TimeoutError, one, one, NotConnectedError, one, one, one, TypeError]

    async def connect(self: Gate, where: Any, expect: Any) -> Peer:
        raise ends.pop(0)("b")

    monkeypatch.setattr(Gate, "_connect", connect)
    async with Node("a", secret=SECRET) as a:
        with pytest.raises(one):
            await a.connect("tcp://127.0.0.1:7", retry=Retry(initial=0.001, maximum=0.001))
    assert ends == [TypeError]


@virtual
async def test_attempts_that_fail_are_logged_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from backplane.bridge import _gate

    made = 0

    async def refuse(address: object) -> None:
        nonlocal made
        made += 1
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed")

    monkeypatch.setattr(_gate, "dial", refuse)
    async with Node("a", secret=SECRET) as a:
        with anyio.move_on_after(24 * 3600):
            await a.connect("tcp://127.0.0.1:7", expect="b", retry=Retry())

    why = "cannot connect with node 'b' at tcp://127.0.0.1:7: nobody answers there: "
    first, *others = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert first == f"node 'a': {why}Connection refused"
    assert others == [
        f"node 'a': {why}Connection refused (after {2**power} attempts)"
        for power in range(1, made.bit_length())
    ]
    assert 10 < made.bit_length() < 20


@two_loops
async def test_each_kind_of_failure_is_logged_with_the_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ends = [TimeoutError(), NotConnectedError("b"), TimeoutError("b is slow"), AuthError("no")]

    async def connect(self: Gate, where: Any, expect: Any) -> Peer:
        raise ends.pop(0)

    monkeypatch.setattr(Gate, "_connect", connect)
    async with Node("a", secret=SECRET) as a:
        with pytest.raises(AuthError):
            await a.connect("tcp://127.0.0.1:7", retry=Retry(initial=0.001))

    at = "node 'a': cannot connect with tcp://127.0.0.1:7: "
    assert [record.getMessage() for record in caplog.records if record.levelno >= 30] == [
        f"{at}TimeoutError",
        f"{at}node 'b' is not connected, or no longer (after 2 attempts)",
        f"{at}b is slow (after 3 attempts)",
    ]


@two_loops
async def test_port_0_is_not_dialled() -> None:
    async with Node("a", secret=SECRET) as a:
        with pytest.raises(AddressError, match=r"tcp://127\.0\.0\.1:0: port 0 is to listen at"):
            await a.connect(LOCAL, retry=Retry())


@two_loops
async def test_dialling_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from backplane.bridge import _gate

    monkeypatch.setattr(_gate, "dial", lambda address: anyio.sleep_forever())
    async with Node("a", secret=SECRET, limits=Limits(handshake=0.05)) as a:
        with pytest.raises(TimeoutError, match=r"with tcp://.*:1: nobody answered within 0.05 s"):
            await a.connect("tcp://127.0.0.1:1")


@by_socket
async def test_connecting_again_gives_the_connection_that_there_is(way: Way) -> None:
    async with way.pair() as world:
        address = await world.b.listen(way.address())
        back = await world.a.listen(way.address())

        assert await world.a.connect(address) is world.to_b
        assert await world.a.connect(address) is world.to_b
        assert await world.b.connect(back) is world.to_a
        assert (world.a.peers(), world.b.peers()) == ([world.to_b], [world.to_a])


@by_socket
async def test_connecting_twice_at_once_makes_one_connection(way: Way) -> None:
    async with way.node("a") as a, way.node("b") as b:
        address = await b.listen(way.address())
        made: list[Peer] = []

        async def connect() -> None:
            made.append(await a.connect(address))

        async with anyio.create_task_group() as tg:
            for _ in range(5):
                tg.start_soon(connect)

        assert len(made) == 5
        assert set(made) == {a.peer("b")}
        await until(lambda: len(b.peers()) == 1)
        assert made[0].connected


@pytest.mark.heavy
@by_socket
async def test_of_two_dials_that_cross_one_stays_and_both_get_it(way: Way) -> None:
    rounds = 200 if os.environ.get("CI") else {"tcp": 60}.get(way.kind, 20)
    async with way.node("a") as a, way.node("b") as b:
        to_a, to_b = await a.listen(way.address()), await b.listen(way.address())
        events: list[Any] = []
        a.subscribe(events.append)
        b.subscribe(events.append)
        for number in range(rounds):
            made: dict[str, Peer] = {}

            async def connect(
                node: Node, address: str, turns: int, made: dict[str, Peer] = made
            ) -> None:
                for _ in range(turns):
                    await checkpoint()
                made[node.name] = await node.connect(address)

            with anyio.fail_after(20):
                async with anyio.create_task_group() as tg:
                    tg.start_soon(connect, a, to_b, number % 7)
                    tg.start_soon(connect, b, to_a, number % 5)

            assert made == {"a": a.peer("b"), "b": b.peer("a")}
            assert made["a"].connected
            assert made["b"].connected
            assert await ends_agree(made["a"], made["b"])
            made["a"].close()
            await until(lambda: not a.peers() and not b.peers())

    counts = Counter((type(event), event.name) for event in events)
    assert counts == {(kind, name): rounds for kind in (NodeUp, NodeDown) for name in ("a", "b")}


async def ends_agree(one: Peer, other: Peer) -> bool:
    """Whether two peers are the ends of one connection."""
    before = other._session.frames_in
    with pytest.raises(ExportError):
        await one.find("nothing")
    return other._session.frames_in > before


# -- two of one name -------------------------------------------------------------------------------


@pytest.mark.heavy
@by_tcp
@two_loops
@pytest.mark.parametrize("who", ["the rival", "the node"])
async def test_another_node_of_a_name_is_refused_while_the_first_one_lives(
    way: Way, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with way.node("a") as a, way.node("b") as first, way.node("b") as rival:
        address = await a.listen(way.address())
        here = await first.connect(address)
        await meets(a, {"b"})
        kept = a.peer("b")
        events: list[Any] = []
        a.subscribe(events.append)

        dialler = rival if who == "the rival" else a
        where = address if who == "the rival" else await rival.listen(way.address())
        with pytest.raises(NameTakenError) as caught:
            await dialler.connect(where)

        text = str(caught.value)
        assert "another node called 'b' is connected" in text
        assert "alive: give each node a name of its own" in text
        assert caught.value.node == {"the rival": "a", "the node": "b"}[who]
        assert a.peers() == [kept]
        assert (kept.incarnation, kept.connected, here.connected) == (first.incarnation, True, True)
        assert events == []
        assert "NameTakenError" in a.stats().refused
        assert "NameTakenError" in rival.stats().refused
        source = a.stats().peers[0].source
        said = [
            record.getMessage()
            for record in caplog.records
            if record.levelname == "WARNING" and record.getMessage().startswith("node 'a'")
        ]
        assert said
        assert all(f"'b' is connected, at {source}, and alive" in text for text in said)
        assert all(text.startswith("node 'a': no connection with ") for text in said)


@pytest.mark.heavy
@by_socket
@pytest.mark.parametrize("who", ["the new one", "the other"])
async def test_the_next_life_of_a_node_gets_in_when_the_former_one_shows_no_life(
    way: Way, who: str
) -> None:
    limits = Limits(handshake=20)
    async with way.node("a", dead_after=60.0, limits=limits) as a:
        address = await a.listen(way.address())
        events: list[Any] = []
        a.subscribe(events.append)
        old = await Puppet.dial(await a.listen(LOCAL))  # it never answers a ping
        await meets(a, {"b"})
        lost = monitor(a.peer("b").line())
        async with way.node("b", dead_after=60.0, limits=limits) as new:
            with anyio.fail_after(20):
                if who == "the new one":
                    await new.connect(address)
                    await meets(a, {"b"})
                else:
                    peer = await a.connect(await new.listen(way.address()), expect="b")
                    assert peer.incarnation == new.incarnation

            assert isinstance(await news(lost), Disconnected)
            assert a.peer("b").incarnation == new.incarnation
            kinds = [(type(event), event.incarnation) for event in events]
            former = events[0].incarnation
            assert kinds == [(NodeUp, former), (NodeDown, former), (NodeUp, new.incarnation)]
        await old.stream.aclose()


Ends = list[type[BridgeError] | str]


@virtual
@pytest.mark.parametrize(
    ("ends", "times", "last"),
    [
        (["peer"], [0.0], None),
        ([PerhapsTakenError, PerhapsTakenError, "peer"], [0.0, 0.1, 0.3], None),
        ([PerhapsTakenError] * 4 + ["peer"], [0.0, 0.1, 0.3, 0.7, 1.1], None),
        ([NameTakenError, "peer"], [0.0, 1.1], None),
        ([PerhapsTakenError, NameTakenError, NameTakenError], [0.0, 0.1, 1.2], NameTakenError),
        ([PerhapsTakenError] * 99, None, PerhapsTakenError),
        ([DuplicateError, DuplicateError, "peer"], [0.0, 0.1, 0.3], None),
        ([DuplicateError] * 99, None, DuplicateError),
        ([FullError], [0.0], FullError),
        ([ProofRefusedError], [0.0], ProofRefusedError),
    ],
)
async def test_a_dial_is_repeated_until_a_dead_connection_must_have_been_found_out(
    ends: Ends, times: list[float] | None, last: type[BridgeError] | None
) -> None:
    left = list(ends)
    began = anyio.current_time()
    tried: list[float] = []

    async def dial(patience: float) -> Any:
        tried.append(round(anyio.current_time() - began, 2))
        end = left.pop(0)
        if isinstance(end, str):
            return end
        if end is DuplicateError:
            await anyio.sleep(patience)
        raise end("b")

    if last is None:
        peer: Any = await persist(dial, 5.0)
        assert peer == "peer"
    else:
        with pytest.raises(last):
            await persist(dial, 5.0)
    assert tried == (times or tried)
    assert 4.0 < tried[-1] < 5.0 or times is not None


class Deaf:
    """A stream of which one end is closed, and the other does not notice."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.deaf = False

    def extra(self, attribute: Any, default: Any = None) -> Any:
        return default

    async def send(self, data: bytes) -> None:
        if not self.deaf:
            await self._stream.send(data)

    async def receive(self, most: int = 65536) -> bytes:
        if self.deaf:
            await anyio.sleep_forever()
        try:
            return await self._stream.receive(most)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self.deaf = True
            await anyio.sleep_forever()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()


@two_loops
async def test_a_connection_that_only_the_other_side_believes_in_is_replaced() -> None:
    patient: dict[str, Any] = {
        "heartbeat": 20.0, "dead_after": 60.0, "limits": Limits(handshake=20),
    }  # fmt: skip
    async with Node("a", secret=SECRET, **patient) as a, Node("b", secret=SECRET, **patient) as b:
        address = await b.listen(LOCAL)
        here, there = pair()
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: b.attach(Deaf(there), dial=False))  # type: ignore[arg-type]
            first = await a.attach(here, dial=True)
        lost = monitor(b.peer("a").line())
        first._session.down(NotConnectedError("b", "stay"))
        assert b.peer("a").connected

        with anyio.fail_after(20):
            second = await a.connect(address)

        assert second.connected
        assert isinstance(await news(lost), Disconnected)
        await until(lambda: b.peers())
        assert len(b.peers()) == 1


@virtual
async def test_a_stream_whose_peer_keeps_a_dead_connection_is_refused_in_the_end() -> None:
    limits = Limits(handshake=0.2, closing=0.1)
    async with (
        Node("a", secret=SECRET, limits=limits) as a,
        Node("b", secret=SECRET, limits=limits) as b,
    ):
        here, there = pair()
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: b.attach(Deaf(there), dial=False))  # type: ignore[arg-type]
            first = await a.attach(here, dial=True)
        first._session.down(NotConnectedError("b", "stay"))

        again, there = pair()
        async with anyio.create_task_group() as tg:

            async def answer() -> None:
                assert (await b.attach(there, dial=False)).name == "a"

            tg.start_soon(answer)
            with pytest.raises(NotConnectedError):
                await a.attach(again, dial=True)


# -- cancelling ------------------------------------------------------------------------------------


async def test_connecting_can_be_cancelled_at_each_turn(way: Way) -> None:
    """Whatever had begun is undone, at both ends."""
    async with way.node("a") as a, way.node("b") as b:
        address = "" if way.kind == "memory" else await b.listen(way.address())
        cancelled = 0
        for turns in range(60):
            async with anyio.create_task_group() as tg:
                done = anyio.Event()

                async def connect(done: anyio.Event = done) -> None:
                    try:
                        if way.kind == "memory":
                            await way.connect(a, b)
                        else:
                            await a.connect(address)
                    finally:
                        done.set()

                tg.start_soon(connect)
                for _ in range(turns):
                    await checkpoint()
                if not done.is_set():
                    cancelled += 1
                    tg.cancel_scope.cancel()
            await until(lambda: len(a.peers()) == len(b.peers()) and not b.stats().handshakes)
            await a.close()
            await until(lambda: not a.peers() and not b.peers())
        assert cancelled
        assert (a.stats().handshakes, a.stats().peers) == (0, ())
        assert b.stats().peers == ()


@by_tcp
async def test_a_node_may_end_while_it_begins_to_listen(way: Way) -> None:
    ends: list[RuntimeError] = []

    async def listen(a: Node) -> None:
        with pytest.raises(RuntimeError, match="the node has ended") as caught:
            await a.listen(way.address())
        ends.append(caught.value)

    async with anyio.create_task_group() as tg, way.node("a") as a:
        tg.start_soon(listen, a)
        await checkpoint()
    assert len(ends) == 1


async def end_of_connect(node: Node, address: str, ends: list[BaseException | Peer]) -> None:
    try:
        ends.append(await node.connect(address))
    except (NotConnectedError, RuntimeError) as error:
        ends.append(error)


@by_socket
async def test_a_node_may_end_while_it_connects(way: Way) -> None:
    """Whoever waits hears of it, wherever the attempt stands."""
    for turns in (0, 1, 2, 3, 5, 8, 13, 21, 34):
        async with way.node("b") as b, anyio.create_task_group() as tg:
            address = await b.listen(way.address())
            ends: list[BaseException | Peer] = []
            async with way.node("a") as a:
                tg.start_soon(end_of_connect, a, address, ends)
                for _ in range(turns):
                    await checkpoint()
            with anyio.fail_after(20):
                while not ends:
                    await anyio.sleep(0.002)
            assert not a.peers()


# -- misuse -----------------------------------------------------------------------------------


async def test_a_node_that_dials_itself_is_told_so_and_does_not_try_again() -> None:
    async with Node("a", secret=SECRET) as a:
        address = await a.listen("tcp://127.0.0.1:0")
        with anyio.fail_after(20):
            with pytest.raises(AuthError) as caught:
                await a.connect(address, retry=Retry(initial=60.0))
        assert str(caught.value) == f"{address} is node 'a' itself"
        assert not a.peers()


async def test_a_node_is_not_for_other_threads() -> None:
    async with Node("b", secret=SECRET) as b, Node("a", secret=SECRET) as a:
        address = await b.listen("tcp://127.0.0.1:0")
        peer = await a.connect(address)

        def elsewhere() -> None:
            for attempt in (lambda: a.connect(address), lambda: a.listen("tcp://127.0.0.1:0")):
                with pytest.raises(RuntimeError, match="node 'a' lives in another thread's loop"):
                    anyio.run(attempt)

        await anyio.to_thread.run_sync(elsewhere)

        assert peer.connected
        assert a.peers() == [peer]


class LatePort(Desk):
    async def call(self, request: Any) -> None:  # type: ignore[override]
        raise AssertionError


@pytest.mark.parametrize("port", [Desk, object(), LatePort()])
def test_what_is_no_port_is_refused_before_anybody_asks_it(port: Any) -> None:
    node, device = Node("a"), Device()
    for attempt in (lambda: node.export("d", device, port=port), lambda: node.serve(device, port)):
        with pytest.raises(TypeError, match=r"port is an object with|is async, and nobody would"):
            attempt()


async def test_a_node_that_has_ended_exports_nothing() -> None:
    async with Node("a") as a:
        pass
    with pytest.raises(RuntimeError, match="the node has ended"):
        a.export("d", Device())
