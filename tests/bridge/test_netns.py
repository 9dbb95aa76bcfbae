"""Real partitions: two network namespaces, joined by a cable that leads nowhere else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from backplane import Disconnected, NoConnection
from backplane.bridge import Limits, Node, Retry, call

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from nodes import SECRET, monitor, news, silent, until
    from test_processes import HEARTBEAT, other
else:
    from .nodes import SECRET, monitor, news, silent, until
    from .test_processes import HEARTBEAT, other

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        ("anyio_backend", "how"),
        [
            ("asyncio", "one way"),
            ("trio", "other way"),
            ("uvloop", "both ways"),
            ("trio", "link down"),
        ],
        indirect=["anyio_backend"],
    ),
]

DEAD_AFTER = 1.5
"""Much longer than anything else takes, also on a machine that has other things to do."""
HERE, THERE = "198.18.77.1", "198.18.77.2"
NOBODY = "02:00:00:00:00:99"


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


class Cable:
    """Two namespaces with an end of it each."""

    def __init__(self) -> None:
        self.a, self.b = f"bp{os.getpid()}a", f"bp{os.getpid()}b"

    def lay(self) -> None:
        for name in (self.a, self.b):
            ip(f"netns add {name}")
        ip(f"link add name va netns {self.a} type veth peer name vb netns {self.b}")
        for name, device, address in ((self.a, "va", HERE), (self.b, "vb", THERE)):
            ip(f"-n {name} addr add {address}/24 dev {device}")
            ip(f"-n {name} link set {device} up")
            ip(f"-n {name} link set lo up")

    def remove(self) -> None:
        for name in (self.a, self.b):
            with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
                ip(f"netns del {name}")

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Have sockets of this thread made at the end ``a``."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.a}") as away:
            assert libc.setns(away.fileno(), 0) == 0
            try:
                yield
            finally:
                assert libc.setns(home.fileno(), 0) == 0

    def cut(self, how: str) -> None:
        match how:
            case "link down":
                ip(f"-n {self.b} link set vb down")
            case _:
                # What is sent goes to an address that nobody has: it is lost without a word.
                if how != "other way":
                    ip(f"-n {self.a} neigh replace {THERE} lladdr {NOBODY} dev va nud permanent")
                if how != "one way":
                    ip(f"-n {self.b} neigh replace {HERE} lladdr {NOBODY} dev vb nud permanent")

    def mend(self) -> None:
        ip(f"-n {self.b} link set vb up")
        for name, device, address in ((self.a, "va", THERE), (self.b, "vb", HERE)):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(f"-n {name} neigh del {address} dev {device}")


@pytest.fixture
def cable() -> Iterator[Cable]:
    if os.geteuid() != 0 or shutil.which("ip") is None or not Path("/proc/thread-self").exists():
        pytest.skip("namespaces need Linux, root and iproute2")
    cable = Cable()
    try:
        try:
            cable.lay()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"namespaces are not permitted here: {error.stderr.decode().strip()}")
        yield cable
    finally:
        cable.remove()


async def test_a_partition_is_noticed_in_time_on_both_sides_and_outlived(
    cable: Cable, how: str
) -> None:
    prefix = ("ip", "netns", "exec", cable.b)
    quick = Limits(handshake=1)
    async with (
        other(f"tcp://{THERE}:0", prefix=prefix, dead_after=DEAD_AFTER) as there,
        Node("a", secret=SECRET, heartbeat=HEARTBEAT, dead_after=DEAD_AFTER, limits=quick) as a,
    ):
        with cable.here():
            peer = await a.connect(there.address, insecure_plaintext=True)
        line = await peer.find("device 0")
        near = monitor(line)
        assert await call(line, "there?") == "there?"

        cable.cut(how)
        message = await news(near)

        assert message == Disconnected(line.id, NoConnection("b"))
        assert silent(near)
        with anyio.fail_after(20):  # by itself, the system would go on for a quarter of an hour
            while await there.ask("peers") != "0":
                await anyio.sleep(0.01)

        cable.mend()
        with cable.here():
            again = await a.connect(
                there.address,
                insecure_plaintext=True,
                retry=Retry(initial=0.05, maximum=0.1, attempts=100),
            )
        assert (await again.find("device 0")).id == line.id
        await until(lambda: len(a.peers()) == 1)
