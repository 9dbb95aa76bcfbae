"""Other libraries, as their documentation shows; each says what it is in the other process."""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from itertools import count
from typing import Any

from _bridge_cases import Ends, Kind, Kit, Near, fars
from _bridge_libraries import GRPC, TRACTOR, XOSCAR, if_here
from _bridge_work import Counter, question
from _supervisor_libraries import CASTY, LAPINBEAM

_numbers = count()


def free_port() -> int:
    """For those who have to be told one."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# -- xoscar ------------------------------------------------------------------------------


def xoscar_class() -> Any:
    library = import_module("xoscar")

    def init(self: Any) -> None:
        self.counter = Counter()

    def ask(self: Any, asked: Any) -> int:
        return int(self.counter.answer(asked))

    def told(self: Any, message: Any) -> None:
        self.counter.take(message)

    methods = {"__init__": init, "ask": ask, "told": told, "__module__": __name__}
    return type("XoscarServer", (library.Actor,), methods)


async def serve_xoscar(ready: Callable[[object], None], directory: str) -> None:
    library = import_module("xoscar")
    async with await library.create_actor_pool("127.0.0.1:0", n_process=0) as pool:
        await library.create_actor(xoscar_class(), uid="server", address=pool.external_address)
        ready(pool.external_address)
        await pool.join()


@asynccontextmanager
async def near_xoscar(kind: Kind) -> AsyncIterator[Ends]:
    library = import_module("xoscar")
    address = fars.get("_bridge_peers:serve_xoscar")
    ref = await library.actor_ref(address=address, uid="server")

    async def ask(number: int) -> int:
        return int(await ref.ask(question(number)))

    async def told() -> int:
        return int(await ref.ask(None))

    async def tell(n: int) -> None:
        for number in range(n):
            await ref.told.tell(question(number))

    yield Ends(ask, tell, told)


@if_here(XOSCAR)
def _(_: Any) -> None:
    kit = Kit("xoscar", "asyncio", near_xoscar, ("tcp",), part=5)
    kit.add()
    kit.add_servers()


# -- casty: a cluster of one node, and a client of it ------------------------------------


async def serve_casty(ready: Callable[[object], None], directory: str) -> None:
    library = import_module("casty")
    import_module("_bridge_casty")
    bind = f"127.0.0.1:{free_port()}"
    async with library.ActorSystem(cluster=library.Cluster(bind=bind, seeds=(bind,))):
        ready(bind)
        await asyncio.Event().wait()


@asynccontextmanager
async def near_casty(kind: Kind) -> AsyncIterator[Ends]:
    library, parts = import_module("casty"), import_module("_bridge_casty")
    async with library.Client(seeds=(fars.get("_bridge_peers:serve_casty"),)) as client:
        ref = client.ref(parts.server, "one")

        async def ask(number: int) -> int:
            return int(await ref.ask(parts.Question(**question(number))))

        async def told() -> int:
            return int(await ref.ask(parts.HowMany()))

        async def tell(n: int) -> None:
            for number in range(n):
                ref.tell(parts.Told(**question(number)))

        yield Ends(ask, tell, told)


@if_here(CASTY)
def _(_: Any) -> None:
    kit = Kit("casty, Client", "asyncio", near_casty, ("tcp",))
    kit.add()
    kit.add_servers()


# -- lapinbeam ---------------------------------------------------------------------------


def lapinbeam_class(library: Any) -> Any:
    def init(self: Any) -> None:
        self.counter = Counter()

    async def receive(self: Any, message: Any) -> None:
        meta = library.current_message()
        if meta.reply_to is None:
            self.counter.take(message)
        else:
            await meta.reply(self.counter.answer(message or None))

    methods = {"__init__": init, "receive": receive}
    return library.actor(name="server")(type("Server", (), methods))


async def serve_lapinbeam(ready: Callable[[object], None], directory: str) -> None:
    library, port = import_module("lapinbeam"), free_port()
    async with library.Node(f"far@127.0.0.1:{port}", port) as node:
        library.Supervisor("one_for_one", node).spawn(lapinbeam_class(library))
        ready(node.local_id)
        await asyncio.Event().wait()


@asynccontextmanager
async def near_lapinbeam(kind: Kind) -> AsyncIterator[Ends]:
    library, port = import_module("lapinbeam"), free_port()
    far = fars.get("_bridge_peers:serve_lapinbeam")
    async with library.Node(f"near{next(_numbers)}@127.0.0.1:{port}", port) as node:
        await node.connect_peer(far)
        ref = node.get_remote_actor(far, "server")

        async def ask(number: int) -> int:
            return int(await ref.ask(question(number)))

        async def told() -> int:
            return int(await ref.ask({}))

        async def tell(n: int) -> None:
            for number in range(n):
                await ref.send(question(number))
                if not number % 250:  # of more at once, it drops some
                    await told()

        yield Ends(ask, tell, told)


@if_here(LAPINBEAM)
def _(_: Any) -> None:
    kit = Kit("lapinbeam", "asyncio", near_lapinbeam, ("tcp",))
    kit.add()
    kit.add_servers()


# -- gRPC, with bytes of its users' own making -------------------------------------------


async def serve_grpc(ready: Callable[[object], None], directory: str) -> None:
    library = import_module("grpc")
    counter = Counter()

    async def ask(asked: Any, context: Any) -> int:
        return counter.answer(asked)

    async def tell(messages: Any, context: Any) -> int:
        async for message in messages:
            counter.take(message)
        return counter.told

    coding = {"request_deserializer": pickle.loads, "response_serializer": pickle.dumps}
    handlers = {
        "ask": library.unary_unary_rpc_method_handler(ask, **coding),
        "tell": library.stream_unary_rpc_method_handler(tell, **coding),
    }
    server = library.aio.server()
    server.add_generic_rpc_handlers((library.method_handlers_generic_handler("bench", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_insecure_port(f"unix:{directory}/s")
    await server.start()
    ready({"tcp": f"127.0.0.1:{port}", "unix": f"unix:{directory}/s"})
    await server.wait_for_termination()


@asynccontextmanager
async def near_grpc(kind: Kind) -> AsyncIterator[Ends]:
    library = import_module("grpc")
    address = fars.get("_bridge_peers:serve_grpc")[kind]
    coding = {"request_serializer": pickle.dumps, "response_deserializer": pickle.loads}
    async with library.aio.insecure_channel(address) as channel:
        call = channel.unary_unary("/bench/ask", **coding)
        stream = channel.stream_unary("/bench/tell", **coding)

        async def ask(number: int) -> int:
            return int(await call(question(number)))

        async def told() -> int:
            return int(await call(None))

        async def tell(n: int) -> None:
            writing = stream()
            for number in range(n):
                await writing.write(question(number))
            await writing.done_writing()
            await writing

        yield Ends(ask, tell, told)


@if_here(GRPC)
def _(_: Any) -> None:
    kit = Kit("grpcio, aio", "asyncio", near_grpc, part=5)
    kit.add()
    kit.add_servers()


# -- tractor -----------------------------------------------------------------------------


def tractor_near(name: str) -> Near:
    @asynccontextmanager
    async def near(kind: Kind) -> AsyncIterator[Ends]:
        async with getattr(import_module("_bridge_tractor"), name)(kind) as parts:
            yield Ends(*parts)

    return near


@if_here(TRACTOR)
def _(_: Any) -> None:
    run = Kit("tractor, Portal.run", "trio", tractor_near("near_run"), part=20)
    run.add(tell=False)
    run.add_servers()
    Kit("tractor, MsgStream", "trio", tractor_near("near_stream"), part=5).add(many_=False)
