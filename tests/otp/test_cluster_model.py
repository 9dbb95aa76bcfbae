"""Whatever happens to nodes and their connections, once all is well again they agree."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import TaskGroup
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane import testing
from backplane.bridge import BridgeError
from backplane.otp import (
    NOCONNECTION,
    NOPROC,
    SHUTDOWN,
    CallError,
    Down,
    From,
    GenServer,
    NoProcessError,
    Pid,
    Ref,
    call,
    cast,
    current_process,
    start,
)

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from otp.cluster_world import Side, pair, side
else:
    from .cluster_world import Side, pair, side

NAMES = ("a", "b", "c")
PAIRS = (("a", "b"), ("a", "c"), ("b", "c"))
SERVERS = 3
node_names = st.sampled_from(NAMES)
pairs = st.sampled_from(PAIRS)
small = st.integers(0, SERVERS - 1)
steps = st.one_of(
    st.tuples(
        st.sampled_from(["join", "leave", "register", "unregister"]), node_names, small, small
    ),
    st.tuples(st.sampled_from(["end", "restart"]), node_names, small),
    st.tuples(st.sampled_from(["connect", "connect", "close", "cut"]), pairs),
    st.tuples(st.sampled_from(["hold", "go on"]), pairs, st.booleans()),
    st.tuples(st.sampled_from(["watch", "cast", "cast"]), node_names, node_names, small),
    st.tuples(st.just("call"), node_names, small, st.sampled_from([0.0, 0.3, 2.0])),
    st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.001, 0.1, 1.0, 6.0, 20.0])),
)


class Held:
    """A stream whose other end is not heard for a while, as that of a process that is stopped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.free = anyio.Event()
        self.free.set()

    def hold(self) -> None:
        if self.free.is_set():
            self.free = anyio.Event()

    async def send(self, item: bytes) -> None:
        await self.free.wait()
        await self._stream.send(item)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Echo(GenServer):
    """Answers as late as it is told, and notes in what order casts come."""

    def init(self, casts: dict[str, list[int]]) -> None:
        self.casts = casts

    async def handle_call(self, message: Any, from_: From) -> Any:
        seconds, token = message
        await anyio.sleep(seconds)
        return token

    def handle_cast(self, message: Any) -> None:
        sender, number = message
        self.casts[sender].append(number)


@dataclass
class Watch:
    """A process of one node, as another one has it, and has been told of it."""

    pid: Pid
    far: Pid
    ref: Ref


@dataclass
class Life:
    """A node from its start to its end."""

    name: str
    side: Side = field(init=False)
    servers: list[Pid] = field(default_factory=list)
    casts: dict[Pid, dict[str, list[int]]] = field(default_factory=dict)
    started: anyio.Event = field(default_factory=anyio.Event)
    stop: anyio.Event = field(default_factory=anyio.Event)
    over: anyio.Event = field(default_factory=anyio.Event)
    watches: list[Watch] = field(default_factory=list)
    downs: list[Down] = field(default_factory=list)
    watcher: Pid = field(init=False)

    async def run(self) -> None:
        async with side(self.name) as self.side:
            self.watcher = self.side.scope.spawn(self._watch)
            for _ in range(SERVERS):
                await self.add(len(self.servers))
            self.started.set()
            await self.stop.wait()
        self.over.set()

    async def _watch(self) -> None:
        while True:
            self.downs.append(await current_process().receive(Down))

    async def add(self, number: int) -> None:
        casts: dict[str, list[int]] = defaultdict(list)
        pid = (await start(Echo, casts, scope=self.side.scope)).pid
        self.casts[pid] = casts
        self.servers[number : number + 1] = [pid]


class World:
    """The nodes, what joins them, and what they have asked each other."""

    def __init__(self, tasks: TaskGroup) -> None:
        self.tasks = tasks
        self.lives: dict[str, Life] = {}
        self.wires: dict[tuple[str, str], tuple[Held, Held]] = {}
        self.numbers: Counter[str] = Counter()
        self.asked = 0
        self.answered = 0

    async def start(self, name: str) -> None:
        life = self.lives[name] = Life(name)
        self.tasks.start_soon(life.run)
        await life.started.wait()

    async def stop(self, name: str) -> None:
        life = self.lives[name]
        life.stop.set()
        await life.over.wait()

    def are_connected(self, one: str, other: str) -> bool:
        a, b = self.lives[one].side, self.lives[other].side
        return a.is_with(b) and b.is_with(a)

    def connect(self, one: str, other: str) -> None:
        here, there = map(Held, pair())
        self.wires[one, other] = here, there
        for name, stream, dial in ((one, here, True), (other, there, False)):
            self.tasks.start_soon(self._attach, self.lives[name], stream, dial)

    async def _attach(self, life: Life, stream: Any, dial: bool) -> None:
        with contextlib.suppress(BridgeError, TimeoutError, RuntimeError):
            await life.side.node.attach(stream, dial=dial)

    async def step(self, step: Any) -> None:
        match step:
            case ("join" | "leave" as kind, name, who, group):
                life = self.lives[name]
                getattr(life.side.groups, kind)(f"group {group}", life.servers[who])
            case ("register", name, who, key):
                life = self.lives[name]
                if f"name {key}" not in life.side.registry:
                    life.side.registry.register(f"name {key}", None, life.servers[who])
            case ("unregister", name, who, key):
                life = self.lives[name]
                life.side.registry.unregister(f"name {key}", life.servers[who])
            case ("end", name, who):
                life = self.lives[name]
                pid = life.servers[who]
                pid.exit("ends")
                await pid.wait()
                await life.add(who)
            case ("restart", name, _):
                await self.stop(name)
                await self.start(name)
            case ("connect", (one, other)):
                self.connect(one, other)
            case ("close" | "cut" as kind, (one, other)):
                self.lose(kind, one, other)
            case ("hold" | "go on" as kind, pair, first):
                for held in self.wires.get(pair, ())[:: 1 if first else -1][:1]:
                    held.hold() if kind == "hold" else held.free.set()
            case ("watch", one, other, who) if one != other:
                self.watch(self.lives[one], self.lives[other], who)
            case ("cast", one, _, who):
                self.cast(one, who)
            case ("call", name, key, seconds):
                self.tasks.start_soon(self.call, self.lives[name], f"name {key}", seconds)
            case ("sleep", seconds):
                await anyio.sleep(seconds)
            case _:
                pass

    def lose(self, kind: str, one: str, other: str) -> None:
        for here, there in ((one, other), (other, one)):
            life = self.lives[here]
            if life.side.is_with(self.lives[there].side):
                peer = life.side.node.peer(there)
                if kind == "close":
                    peer.close()
                    return
                peer._session.down(ConnectionError("cut"))

    def watch(self, life: Life, other: Life, who: int) -> None:
        pid = other.servers[who]
        far = life.side.see(other.side, pid)
        life.watches.append(Watch(pid, far, life.watcher._process.monitor(far)))

    def cast(self, name: str, who: int) -> None:
        watches = self.lives[name].watches
        if watches:
            self.numbers[name] += 1
            cast(watches[who % len(watches)].far, [name, self.numbers[name]])

    async def call(self, life: Life, key: str, seconds: float) -> None:
        self.asked += 1
        token = self.asked
        with contextlib.suppress(CallError, NoProcessError):
            assert await call(life.side.cluster.via(key), [seconds, token], 1) == token
        self.answered += 1

    # -- all is well again -----------------------------------------------------------------

    async def heal(self) -> None:
        for wire in self.wires.values():
            for held in wire:
                held.free.set()
        await anyio.sleep(60)  # what is about to be lost is lost
        for one, other in PAIRS:
            if not self.are_connected(one, other):
                self.connect(one, other)
        await anyio.sleep(30)
        for one, other in PAIRS:
            assert self.are_connected(one, other)

    async def check(self) -> None:
        assert self.answered == self.asked
        for life in self.lives.values():
            self.check_names(life)
            for watch in life.watches:
                await self.check_watch(life, watch)
            for casts in life.casts.values():
                for numbers in casts.values():
                    assert numbers == sorted(set(numbers))

    def check_names(self, life: Life) -> None:
        here = life.side
        members: dict[Any, Counter[Any]] = defaultdict(Counter)
        for other in self.lives.values():
            there = other.side
            for group in there.groups.which_groups():
                members[group].update(pid.id for pid in there.groups.local_members(group))
            names = {key: pid.id for key, pid, _ in there.registry.select()}
            if other is not life:
                known = here.cluster._neighbours[other.name].names
                assert {key: pid.id for key, pid in known.items()} == names
                assert all(pid.alive for pid in known.values())
        known_members = {
            group: Counter(pid.id for pid in here.groups.members(group))
            for group in here.groups.which_groups()
        }
        assert known_members == {group: each for group, each in members.items() if each}

    async def check_watch(self, life: Life, watch: Watch) -> None:
        pid, far = watch.pid, watch.far
        downs = [down for down in life.downs if down.ref is watch.ref]
        assert far.alive is pid.alive
        if pid.alive:
            assert await call(far, [0, "alive"]) == "alive"
            assert len(downs) <= 1
        else:
            with pytest.raises(CallError) as caught:
                await call(far, [0, "alive"])
            assert getattr(caught.value, "reason", None) is NOPROC
            assert len(downs) == 1
        assert {down.reason for down in downs} <= {"ends", SHUTDOWN, NOCONNECTION, NOPROC}


async def play(schedule: list[Any]) -> None:
    with anyio.fail_after(100_000):
        async with anyio.create_task_group() as tasks:
            world = World(tasks)
            for name in NAMES:
                await world.start(name)
            await world.heal()
            for step in schedule:
                await world.step(step)
            await world.heal()
            await world.check()
            for name in NAMES:
                await world.stop(name)


@pytest.mark.heavy
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=60)
@given(schedule=st.lists(steps, max_size=60))
def test_once_all_is_well_again_all_nodes_agree(backend: str, schedule: list[Any]) -> None:
    logger = logging.getLogger("backplane")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # that servers end, and how, is wanted
    try:
        testing.run(play, schedule, backend=backend)
    finally:
        logger.setLevel(level)
