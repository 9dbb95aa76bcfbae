"""What pids are on the wire, and which processes they lead to."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, final

from backplane import DeviceID, Line
from backplane.bridge import EncodeError, Node, NotConnectedError, PayloadError, Right
from backplane.lowlevel import clock, outpost_of

from ._far import FarProcess
from ._from import Calls
from ._handles import Pid
from ._mailbox import ALIVE
from ._port import ProcessPort
from ._process import Process
from ._reasons import NOPROC
from ._wire import Words

if TYPE_CHECKING:
    from ._neighbours import Neighbour

_logger = logging.getLogger("backplane.otp")

_ALIVE, _ENDED = b"\1", b"\0"
_AT_ONCE: Final = 50
"""So many are told of in one message."""
_NEEDED: Final = Right.LINK | Right.SEND


@final
class Pids:
    """The pids of a node: those of its own processes that others have, and those of others.

    On the wire a pid is the Line of its process, behind a byte that tells whether
    that lived when it was sent. The same process has the same bytes, always.
    """

    _now: Callable[[], float]
    """The clock of the cluster's loop, once it is open: before, no far process lives."""
    _thread: int
    """The thread of that."""

    def __init__(self, node: Node, types: Iterable[type]) -> None:
        self.node = node
        self.words = Words(node, types, self.pack, self.open)
        self.cluster: Line | None = None
        """The cluster here, to which ends are announced; None unless it is open."""
        self.find_cluster: Callable[[str], Line | None] = lambda _: None
        """The cluster on another node, if it is known."""
        self.urge: Callable[[str, list[object]], None] = lambda _, __: None
        """Say something to the cluster on another node, if it is known, in front of what waits."""
        self._far: weakref.WeakValueDictionary[bytes, FarProcess] = weakref.WeakValueDictionary()
        self._ports: weakref.WeakValueDictionary[DeviceID, ProcessPort] = (
            weakref.WeakValueDictionary()
        )
        self._addresses: weakref.WeakValueDictionary[bytes, ProcessPort] = (
            weakref.WeakValueDictionary()
        )
        self._local: weakref.WeakValueDictionary[DeviceID, Process] = weakref.WeakValueDictionary()
        # Re-entrant: a garbage collection may end a process, and announce with what reason.
        self._lock = threading.RLock()
        self._complaints: Counter[str] = Counter()

    # -- what is sent ----------------------------------------------------------------------

    def pack(self, pid: Pid) -> bytes:
        """A pid for the wire."""
        process = pid._process
        if isinstance(process, FarProcess):
            return process.address
        if self.cluster is None:
            raise EncodeError(f"{pid!r} cannot be sent: the cluster of this node is not open")
        if process.reason is ALIVE:
            return self._port(process).address
        return _ENDED + self.node.pack_line(process.line())

    def _port(self, process: Process) -> ProcessPort:
        """Let a process be reached by whoever gets its pid."""
        with self._lock:
            which = process.device.id
            port = self._ports.get(which)
            if port is None:
                port = ProcessPort(self, process)
                line = self.node.serve(process.line(), port)
                port.address = _ALIVE + self.node.pack_line(line)
                self._ports[which], self._local[which] = port, process
                self._addresses[port.address] = port
            return port

    def announce_to(self, pid: Pid, node: str) -> None:
        """Have another node told why a process ends that it has just been told of."""
        cluster = self.find_cluster(node)
        if cluster is not None and pid._process.is_local:
            self._port(pid._process).watch(node, cluster)

    # -- what comes ------------------------------------------------------------------------

    def open(self, data: bytes) -> Pid:
        """The pid of some bytes.

        Raises:
            PayloadError: They are none.
        """
        alive, wire = data[:1] == _ALIVE, data[1:]
        far = self._far.get(_ALIVE + wire)
        if far is not None:
            if far.lost and self.cluster is not None:
                self._regain(far)
                if far.reason is ALIVE:
                    self._have_announced(far)
            return far.pid  # if it is told to have ended, the reason is on its way
        line = self.node.open_line(wire)
        outpost = outpost_of(line)
        process = self._local.get(line.id)
        if outpost is None:
            if process is None:
                raise PayloadError("a pid of what is no process")
            return process.pid
        home = outpost.key.line
        if _NEEDED not in Right(home.rights & Right.ALL.value):
            raise PayloadError("a pid that cannot be linked or shut down")
        if self._is_over(home.node, home.incarnation):
            alive = False
        elif home.node == self.node.name:
            # Its token is forgotten, or was never given: so it must not lead to one that lives.
            if process is not None and process.reason is not ALIVE:
                return process.pid
            alive = False
        return self._make(line, data, home.node, alive)

    def _make(self, line: Line, data: bytes, node: str, alive: bool) -> Pid:
        far = FarProcess(self, line, data, node)
        if not alive:
            far.end(NOPROC)
        elif self.cluster is None:
            far.lose()
        else:
            self._far[data] = far
            if far.watch():
                self._have_announced(far)
        return far.pid

    def _regain(self, far: FarProcess) -> None:
        """Reach a process again that was lost, if its node is there."""
        line = self.node.open_line(far.address[1:])
        if not line.connected:
            outpost = outpost_of(line)
            if outpost is not None and self._is_over(far.node, outpost.key.line.incarnation):
                far.lost = False
        else:
            far.regain(line)

    def _is_over(self, node: str, incarnation: bytes) -> bool:
        """Whether a node has been started again since it had some incarnation."""
        if node == self.node.name:
            return incarnation != self.node.incarnation
        try:
            return self.node.peer(node).incarnation != incarnation
        except NotConnectedError:
            return False

    def _have_announced(self, far: FarProcess) -> None:
        """Have the cluster there announce why a process ends; later, if that is not found yet."""
        self.urge(far.node, ["w", [far.address], self.cluster])

    async def found(self, neighbour: Neighbour) -> None:
        """The cluster on another node is found: reach all that are known of there, and are lost.

        No faster than that node takes it: there may be very many.
        """
        known = [far for far in list(self._far.values()) if far.node == neighbour.name]
        while known and not neighbour.lost:
            part = known[-_AT_ONCE:]
            del known[-_AT_ONCE:]
            await neighbour.say(["w", [far.address for far in part], self.cluster])
            for far in part:
                if far.lost and not neighbour.lost:
                    self._regain(far)

    def watch(self, node: str, addresses: list[Any], cluster: Line) -> None:
        """Another node's cluster wants to know why some processes here end that live."""
        for address in addresses:
            if not isinstance(address, bytes):
                raise PayloadError("an address that is none")
            port = self._addresses.get(address)
            if port is not None:
                port.watch(node, cluster)

    def end(self, node: str, address: bytes, reason: object) -> None:
        """A node has announced why a process of its own ends."""
        far = self._far.get(address)
        if far is not None and far.node == node:
            far.end(NOPROC if reason is None else reason)  # that is none

    def lose(self, node: str | None = None) -> None:
        """A node is lost, or all are: so are its processes."""
        for far in list(self._far.values()):
            if node in (None, far.node):
                far.lose()

    def live_here(self) -> None:
        """The cluster opens in this loop: whoever calls from it can share an alarm with others."""
        self._now, self._thread = clock(), threading.get_ident()

    def serve(self, calls: Calls) -> None:
        """Have calls of another node's process wait as those of a server of this loop."""
        calls.serve(None, self._now, self._thread)

    def close(self) -> None:
        """Have nobody reach the processes here, and reach no others."""
        self.cluster = None
        for process in list(self._local.values()):
            if process.reason is ALIVE:
                self.node.revoke(process.line())
        self.lose()

    def complain(self, node: str, error: Exception, to: Pid | None = None) -> None:
        """Log what is wrong with a message, to a process; the more often, the more rarely."""
        self._complaints[node] += 1
        count = self._complaints[node]
        if count & (count - 1) == 0:
            _logger.warning(
                "node %r: a message from %r%s was refused, the %d. so far: %s",
                self.node.name, node, "" if to is None else f" to {to!r}", count, error,
            )  # fmt: skip
