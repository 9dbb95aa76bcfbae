"""What users of the simulation do with Devices, Lines and links."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane import (
    Cancelled,
    Dropped,
    Failed,
    Fault,
    Killed,
    LinkMode,
)
from backplane.bridge._errors import NotAllowedError, RemoteError
from backplane.bridge._exports import Right
from backplane.bridge._frames import WireLine

if TYPE_CHECKING or not __package__:
    from sim_judge import Judge
    from sim_nodes import Dev, Node, Side
    from sim_world import DOWN, BugError, World
else:
    from .sim_judge import Judge
    from .sim_nodes import Dev, Node, Side
    from .sim_world import DOWN, BugError, World

FAULTS: Final[list[Fault | None]] = [None, Killed(), Cancelled(), Failed(RemoteError("E", "text"))]
_MODES: Final = {1: LinkMode.MONITOR, 2: LinkMode.NOTIFY, 3: LinkMode.PEER}
_SWAPPED: Final = {1: LinkMode.NOTIFY, 2: LinkMode.MONITOR, 3: LinkMode.PEER}


class Links:
    """Each act is done at a node, by chance, and tells the model what follows from it."""

    def __init__(self, world: World, judge: Judge) -> None:
        self._world = world
        self._judge = judge

    def do_open(self, node: Node) -> None:
        side = self._world.up(node)
        if side is not None:
            self.open(node, side, self._world.ours(side.other.node))

    def do_open_ended(self, node: Node) -> None:
        """A message that was packed before has a Device's Line in it that has ended meanwhile."""
        world = self._world
        side = world.up(node)
        if side is not None:
            dev = world.ours(side.other.node)
            if dev.device is not None and not side.pipe.harmed:
                self.end(dev, world.rng.choice(FAULTS))
                self.open(node, side, dev)

    def open(self, node: Node, side: Side, dev: Dev) -> None:
        self._world.say(node.name, "opens a Line to", dev)
        peer = side.session.peer
        assert dev.wire is not None
        assert peer is not None
        if peer.incarnation != dev.wire.incarnation:
            return  # it has died, and that is not known yet
        node.lines[dev] = side.session.mirror.open(dev.wire)

    def do_open_lost(self, node: Node) -> None:
        """What has come before the connection was lost is opened afterwards."""
        dev = self._world.rng.choice(list(self._world.by_serial.values()))
        if node.lost is not None and dev.wire is not None:
            line = node.lost.mirror.open(dev.wire)
            if line.connected or len(node.lost.mirror):
                raise BugError(f"a Line to {dev} leads through a connection that is lost")

    def do_find(self, node: Node) -> None:
        world = self._world
        side = world.up(node)
        if side is None or side.finding or side.other.node not in world.nodes:
            return
        world.say(node.name, "looks for x at", side.other.node.name)
        named = side.other.node.named

        def hear(wire: WireLine | None) -> None:
            side.finding = False
            if wire is not None:
                if world.by_serial[wire.id.serial] is not named:
                    raise BugError("what was found is another")
                node.lines[named] = side.session.mirror.open(wire)
            elif side.session.state is not DOWN and not named.ended:
                raise BugError(f"{named} was not found")

        side.finding = True
        side.session.lookups.find("x", hear)

    def do_hand_over(self, node: Node) -> None:
        """Send a Line on, to whomever it is about."""
        world = self._world
        dev, side = world.theirs(node), world.up(node)
        if dev is None or side is None or side.other.node not in world.nodes:
            return
        receiver = side.other.node
        wire = node.reach.wire_line(node.lines[dev])
        if (wire.node, wire.incarnation) == (receiver.name, receiver.me.incarnation):
            line = receiver.reach.find_line(wire)
            if line.connected is dev.ended:
                raise BugError(f"the Line to {dev} comes home as another one")
            return
        line = receiver.reach.find_line(wire)
        if line.connected:
            world.say(receiver.name, "is given a Line to", dev)
            receiver.lines[dev] = line

    def do_drop_line(self, node: Node) -> None:
        dev = self._world.theirs(node)
        if dev is not None:
            self._world.say(node.name, "drops the Line to", dev)
            del node.lines[dev]

    def do_link(self, node: Node) -> None:
        world = self._world
        dev = world.theirs(node)
        if dev is None:
            return
        ours, line, side = world.ours(node), node.lines[dev], world.side_to(node, dev)
        bits = world.rng.randrange(1, 4)  # 1: we hear, 2: they hear
        refused = line.connected and bits & 2 and Right.LINK not in dev.rights
        if side is not None and line.connected and not refused:
            if bits & 2:
                side.notified.add((dev, ours))
            if bits & 1:
                side.linked.add((ours, dev))
        ended = not line.connected
        world.say(ours, "links", dev, "<-" if bits == 1 else bits, "(ended)" if ended else "")
        device = ours.device
        assert device is not None
        try:
            if world.rng.random() < 0.5:
                device.link(line, _MODES[bits])
            else:
                line.link(device, _SWAPPED[bits])
        except NotAllowedError:
            if not refused:
                raise
            return
        except Exception:
            if not ended:
                raise
            return
        if ended or refused:
            raise BugError(f"{ours} can link {dev}, which has ended or may not hear of it")
        if side is not None and bits & 2:
            side.intend(True, dev, ours)

    def do_unlink(self, node: Node) -> None:
        world = self._world
        dev = world.theirs(node)
        if dev is None:
            return
        ours, line, side = world.ours(node), node.lines[dev], world.side_to(node, dev)
        bits = world.rng.randrange(1, 4)
        world.say(ours, "unlinks", dev, bits)
        device = ours.device
        assert device is not None
        if world.rng.random() < 0.5:
            device.unlink(line, _MODES[bits])
        else:
            line.unlink(device, _SWAPPED[bits])
        if side is not None:
            if bits & 1:
                side.linked.discard((ours, dev))
            if bits & 2 and (dev, ours) in side.notified:
                side.notified.discard((dev, ours))
                if line.connected:
                    side.intend(False, dev, ours)

    def do_end(self, node: Node) -> None:
        self.end(self._world.ours(node), self._world.rng.choice(FAULTS))

    def do_drop(self, node: Node) -> None:
        self.end(self._world.ours(node), Dropped())

    def end(self, dev: Dev, fault: Fault | None) -> None:
        self._world.say(dev, "ends", fault)
        node = dev.node
        for side in node.sides:
            if side.is_up:
                side.mark(dev)
                side.linked -= {pair for pair in side.linked if pair[0] is dev}
                side.notified -= {pair for pair in side.notified if pair[1] is dev}
        self._judge.poll(node)
        dev.ended, dev.fault = True, fault
        node.devs.remove(dev)
        device, dev.device = dev.device, None
        assert device is not None
        if not isinstance(fault, Dropped):
            device.disconnect(fault)

    def do_make(self, node: Node) -> None:
        if len(node.devs) < 3:
            self._world.say(node.name, "makes", node.make())
