"""Clusters in two interpreters, of which one is killed, stopped or started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from backplane.bridge import Node, RemoteError
from backplane.otp import (
    NOCONNECTION,
    NOPROC,
    CallTimeoutError,
    Down,
    Exited,
    Pid,
    Scope,
    ServerDownError,
    ServerRef,
    current_process,
)
from backplane.otp.cluster import Cluster

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from otp.cluster_child import SECRET, Account, Total
    from otp.cluster_world import deaf, until
else:
    from .cluster_child import SECRET, Account, Total
    from .cluster_world import deaf, until

pytestmark = pytest.mark.anyio

CHILD = Path(__file__).with_name("cluster_child.py")
ROOT = Path(__file__).parents[2]
SILENCE = 600.0
"""Seconds after which a node that says nothing is taken for dead: no test waits for so long."""


@dataclass
class World:
    """This interpreter's node, and another one's."""

    node: Node
    cluster: Cluster
    scope: Scope
    children: list[subprocess.Popen[str]]
    address: str = ""

    async def start(self, backend: str, address: str = "tcp://127.0.0.1:0") -> ServerRef[Account]:
        """Have an interpreter with a node, and connect with it."""
        child = spawn(address, backend)
        self.children.append(child)
        assert child.stdout is not None
        with anyio.fail_after(30):
            self.address = (await anyio.to_thread.run_sync(child.stdout.readline)).strip()
        await self.node.connect(self.address, expect="child")
        pid = await self.cluster.await_name("account", 20)
        await self.cluster.await_node("child", 20)
        return ServerRef(pid, Account)

    def signal(self, number: int) -> None:
        """Send the last interpreter a signal."""
        self.children[-1].send_signal(number)


def spawn(address: str, backend: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "dev", str(CHILD), address, backend],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    children: list[subprocess.Popen[str]] = []
    try:
        async with (
            Node("parent", secret=SECRET, heartbeat=0.5, dead_after=SILENCE) as node,
            Cluster(node, types=[Total]) as cluster,
            Scope(grace=0.1) as scope,
        ):
            yield World(node, cluster, scope, children)
    finally:
        for child in children:
            child.kill()
            child.communicate()


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    """The loop of the other interpreter."""
    found: str = request.param
    return found


two_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)


@two_loops
async def test_calls_and_pids_cross_between_interpreters(backend: str) -> None:
    async with world() as here:
        account = await here.start(backend)

        async def client() -> None:
            me = current_process()
            assert await account.call(Account.add, 2, me.pid) == Total(2, me.pid)
            assert await account.call(Account.add, 3, me.pid) == Total(5, me.pid)
            assert await me.receive(timeout=20) == ["added", 2]
            assert await me.receive(timeout=20) == ["added", 3]
            with pytest.raises(CallTimeoutError):
                await account.within(0.1).call(Account.say_nothing)
            assert await account.call(Account.where) == here.children[0].pid
            ref = me.monitor(account.pid)
            with pytest.raises(ServerDownError) as caught:
                await account.call(Account.crash)
            assert isinstance(caught.value.reason, RemoteError)
            assert caught.value.begun
            down = await me.receive(Down, timeout=20)
            assert (down.ref, down.reason.text) == (ref, "on purpose")

        await run(here, client)


async def run(here: World, client: Any) -> None:
    """Run a process, and raise what it raises."""
    reason = await here.scope.spawn(client, trap_exit=True).wait()
    if isinstance(reason, Exception):
        raise reason


@two_loops
@pytest.mark.parametrize("how", ["kill -9", "abort"])
async def test_a_killed_interpreter_is_heard_by_all_at_once(how: str, backend: str) -> None:
    async with world() as here:
        account = await here.start(backend)
        await until(lambda: len(here.cluster.groups.members("members")) == 10)
        members = here.cluster.groups.members("members")
        asking = here.scope.spawn(deaf)

        async def watcher() -> None:
            me = current_process()
            refs = {me.monitor(pid): pid for pid in members}
            me.link(account.pid)
            async with anyio.create_task_group() as tg:
                tg.start_soon(hears_no_connection, account)
                await anyio.sleep(0.2)
                if how == "abort":
                    members[0].send("any message")
                else:
                    here.signal(signal.SIGKILL)
            news = [await me.receive(timeout=30) for _ in range(11)]  # not after all the silence
            assert Exited(account.pid, NOCONNECTION) in news
            downs = [each for each in news if isinstance(each, Down)]
            assert {each.ref: each.process for each in downs} == refs
            assert {each.reason for each in downs} == {NOCONNECTION}

        await run(here, watcher)

        assert asking.alive
        assert here.cluster.whereis("account") is None
        assert here.cluster.groups.which_groups() == []
        assert not here.node.peers()


async def hears_no_connection(account: ServerRef[Account]) -> None:
    with pytest.raises(ServerDownError) as caught:
        await account.within(None).call(Account.sleep, 60)
    assert caught.value.reason is NOCONNECTION


async def reason_of_a_call(account: ServerRef[Account]) -> object:
    with pytest.raises(ServerDownError) as caught:
        await account.call(Account.where)
    return caught.value.reason


@two_loops
async def test_a_connection_that_was_cut_and_made_again_leads_to_the_same_processes(
    backend: str,
) -> None:
    async with world() as here:
        account = await here.start(backend)
        members = here.cluster.groups.members("members")
        for _ in range(3):
            here.node.peer("child").close()
            await until(lambda: not here.node.peers())
            assert await reason_of_a_call(account) is NOCONNECTION
            assert {pid.reason for pid in members} <= {NOCONNECTION}

            await here.node.connect(here.address, expect="child")
            await here.cluster.await_node("child", 20)

            assert await account.call(Account.where) == here.children[0].pid
            assert here.cluster.whereis("account") == account.pid
            assert here.cluster.groups.members("members") == members


@pytest.mark.heavy
@two_loops
async def test_an_interpreter_that_is_started_again_has_new_processes(backend: str) -> None:
    async with world() as here:
        account = await here.start(backend)
        old: Pid = account.pid
        where = await account.call(Account.where)
        address = here.address
        here.signal(signal.SIGKILL)
        await until(lambda: not here.node.peers())
        assert old.reason is NOCONNECTION
        assert await reason_of_a_call(account) is NOCONNECTION

        again = await here.start(backend, address)

        assert again.pid != old
        assert not old.alive
        assert await reason_of_a_call(account) is NOPROC
        assert await again.call(Account.where) != where
        assert len(here.cluster.groups.members("members")) == 10


@pytest.mark.heavy
@two_loops
async def test_a_call_to_an_interpreter_that_stands_still_is_over_in_time(backend: str) -> None:
    async with world() as here:
        account = await here.start(backend)
        here.signal(signal.SIGSTOP)

        with anyio.fail_after(30), pytest.raises(CallTimeoutError):
            await account.within(0.5).call(Account.where)

        here.signal(signal.SIGCONT)
        assert await account.within(20).call(Account.where) == here.children[0].pid
