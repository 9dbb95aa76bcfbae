"""Whether what happens in the simulation is as it must be, for who hears, and at rest.

A naive model stands beside it: for each side of a connection the pairs (listener here,
speaker there) that are linked, in a set. What is done at this side changes it at
once. What is done at the other side changes it when so many frames have come as had
been said over there by then: the model counts frames, and never reads one.

How the invariants of a bridge show, after every step, and again when the faults have
stopped and all is quiet, and when all has ended:

* I1, I2: whoever hears ``Disconnected`` is linked in the model, which then forgets the
  pair; so nobody hears twice, or after an unlink. When a connection is lost, no
  pair of it may be left. When all is quiet, none whose speaker has ended.
* I3: at rest, what one side watches and tells is what the other side has outposts for.
* I4: the fault that is heard is the true one, of a Device that has ended, over a
  connection that is up; or it is ``NoConnection``, and the connection is down.
* I5, I6, I8: each message has a number, and belongs to a connection. It must come over
  that one, while it is up, in order; none is missing but those to ended Devices; and
  no end overtakes what was said before it.
* I7: at rest, two nodes have one connection at most, and it is up at both ends or at none.
  Another node of a name gets in soon after the first is dead, and never before.
* I9, I10: silence ends a connection in time; but only one that the network has harmed.
* I11: what waits never exceeds its limit. I12: in the end all tables are empty.
* I13: no bytes and no step make anything raise but what it is documented to.
* I14: whatever has failed to come up is as empty as what was closed.
* Rights: who links or sends without the right is refused, and everything is as before.
* Calls: each ends once: with its own answer, the true fault of who was asked, or the
  loss of the connection; and not after it was given up.

What a step itself must raise or return is looked at where it is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backplane import DeviceID, Disconnected, Fault, NoConnection
from backplane.bridge._errors import NotConnectedError
from backplane.bridge._exports import Right
from backplane.bridge._session import Session

if TYPE_CHECKING or not __package__:
    from sim_nodes import Dev, Node, Side
    from sim_world import DOWN, MARK, UP, BugError, World, same
else:
    from .sim_nodes import Dev, Node, Side
    from .sim_world import DOWN, MARK, UP, BugError, World, same


class Judge:
    """Raises ``BugError`` for what must not be. It takes note in the model of what was heard."""

    def __init__(self, world: World) -> None:
        self._world = world

    # -- at every step -------------------------------------------------------------------------

    def poll(self, node: Node) -> None:
        """Look into a node's mailboxes."""
        for dev in node.devs:
            board = dev.device._board  # type: ignore[union-attr]
            while board.inbox:
                message = board.take()
                if message is None:
                    break
                if type(message) is not Disconnected:
                    raise BugError(f"{dev} got {message}")
                serial = message.sender.serial
                if serial >= MARK:
                    self._came(node, dev, serial)
                else:
                    self._heard(node, dev, self._world.by_serial[serial], message.fault)

    def _heard(self, node: Node, listener: Dev, speaker: Dev, fault: Fault | None) -> None:
        self._world.say(listener, "hears of", speaker, fault)
        pair = listener, speaker
        for side in node.sides:
            if pair in side.linked:
                break
        else:
            raise BugError(f"{listener} hears of {speaker}, with which it is not linked: {fault}")
        side.linked.discard(pair)
        if isinstance(fault, NoConnection):
            if side.session.state is not DOWN or fault.node != speaker.node.name:
                raise BugError(f"{listener} hears that {speaker} is lost, but it is not: {fault}")
        elif not speaker.ended:
            raise BugError(f"{listener} hears that {speaker} has ended, but it lives")
        elif not same(fault, speaker.fault):
            raise BugError(f"{listener} hears of {speaker} {fault}, not {speaker.fault}")
        elif side.session.state is DOWN:
            raise BugError(f"{listener} hears of {speaker} over a connection that is lost")
        elif side.came < speaker.marks.get(side.other, 0):
            raise BugError(f"the end of {speaker} comes before what was said before")

    def got(self, session: Session, number: int) -> None:
        """A message for a port has come."""
        with self._world.within():
            side = self._world.by_session[session]
            if session.state is DOWN:
                raise BugError(f"message {number} comes over a connection that is lost")
            self._next(side, number)

    def _came(self, node: Node, dev: Dev, number: int) -> None:
        for side in node.sides:
            if any(number == sent for sent, _ in side.other.sent):
                self._next(side, number)
                return
        raise BugError(f"message {number} for {dev} comes from nowhere, or again")

    def _next(self, side: Side, number: int) -> None:
        """A message has come over a connection: none before it may be missing."""
        sent = side.other.sent
        while sent:
            expected, to = sent.popleft()
            if expected == number:
                return
            if not to.ended:
                raise BugError(f"message {expected} to {to} is missing, {number} has come")
        raise BugError(f"message {number} was not said on this connection, or came before")

    def lost(self, side: Side) -> None:
        """A side has lost its connection."""
        session = side.session
        self.poll(side.node)
        for listener, speaker in side.linked:
            if not listener.ended:
                raise BugError(f"{listener} does not hear that {speaker} is lost")
        side.linked.clear()
        side.notified.clear()
        if side.asks or side.finding:
            raise BugError(f"requests {side.asks} do not end with the connection")
        if len(session.mirror) or len(session.calls) or len(session.mirror.ear):
            raise BugError("a lost connection still holds something")
        reason = session.reason
        harmed = side.pipe.harmed
        # If nothing has harmed it, the other has closed it, or may not have it.
        if not harmed and not isinstance(reason, NotConnectedError):
            raise BugError(f"{side.node.name} gives up a good connection: {reason!r}")
        elsewhere = side.other
        if type(reason) is NotConnectedError and elsewhere.closed and not side.closed:
            for number, to in elsewhere.sent:
                if number <= elsewhere.closed and not to.ended and not harmed:
                    raise BugError(f"message {number} was said before it was closed, and is lost")

    # -- at rest -------------------------------------------------------------------------------

    def up(self) -> None:
        """What is still connected is so at both ends."""
        for pipe in self._world.pipes:
            states = {pipe.a.session.state, pipe.b.session.state}
            if states != {UP} or pipe.broken:
                raise BugError(f"a connection is not the same at both ends: {states}")

    def agree(self) -> None:
        """Whoever is connected has the same in mind as the other."""
        world = self._world
        pairs = [pipe.pair for pipe in world.pipes]
        if len(pairs) != len(set(pairs)):
            raise BugError(f"two connections between the same nodes: {pairs}")
        if missing := world.dialled - world.spoilt - set(pairs):
            raise BugError(f"these have dialled, and have no connection: {missing}")
        for pipe in world.pipes:
            for side in (pipe.a, pipe.b):
                self._hear_of_theirs(side)
                self._hear_of_ours(side)
                self._over(side)
        for node in world.nodes:
            for dev, line in node.lines.items():
                to = world.side_to(node, dev)
                if to is not None and to.is_up and line.connected is dev.ended:
                    raise BugError(f"the Line of {node.name} to {dev} is wrong")

    def _hear_of_theirs(self, side: Side) -> None:
        mine, theirs = side.session.mirror, side.other.session.mirror
        wanted = {
            outpost.key.line.token
            for outpost in theirs.outposts._outposts.values()
            if outpost.key.line.rights & Right.MONITOR.value
        }
        if set(mine.watches._lines) != wanted:
            raise BugError(f"{side.node.name} watches other Devices than it should")
        if side.session.outbox.waiting or side.intents:
            raise BugError("something waits, though all is quiet")
        for listener, speaker in side.linked:
            if not listener.ended and speaker.ended:
                raise BugError(f"{listener} never hears that {speaker} has ended")
        boards = {dev: dev.device._board for dev in side.node.devs}  # type: ignore[union-attr]
        real = set()
        for outpost in set(mine.outposts._outposts.values()):
            board: Any = outpost._board()
            speaker = self._world.by_serial[outpost.id.serial]
            real |= {(dev, speaker) for dev, mailbox in boards.items() if mailbox in board}
        if real != side.linked:
            raise BugError(f"linked are {real}, and should be {side.linked}")

    def _hear_of_ours(self, side: Side) -> None:
        listening = {
            (listener, self._world.by_serial[device.serial])
            for device, speaker in side.session.mirror.speakers._speakers.items()
            for listener in speaker.listeners
        }
        told = {(dev.token, ours) for dev, ours in side.notified if not dev.ended}
        if listening != told:
            raise BugError(f"{side.node.name} tells {listening}, and should tell {told}")

    def _over(self, side: Side) -> None:
        """Nothing is awaited but what can still come."""
        for number, (_, dev) in side.asks.items():
            if dev.ended:
                raise BugError(f"request {number} never ends, though {dev} has")
        mirror = side.session.mirror
        wanted: dict[DeviceID, int] = {}
        for table in (mirror.watches._tokens, side.session.calls._of, mirror.pairs._speakers):
            for device, those in table.items():
                wanted[device] = wanted.get(device, 0) + len(those)
        if wanted != mirror.ear._wanted:
            raise BugError(f"{mirror.ear._wanted} are heard of for {wanted}")
        if side.finding:
            raise BugError("what was looked for was never found")
        if any(not dev.ended for _, dev in side.sent):
            raise BugError(f"messages never came: {list(side.sent)}")

    # -- when all has ended --------------------------------------------------------------------

    def nothing_left(self) -> None:
        """All Devices have ended and all Lines are dropped: all tables are empty."""
        for pipe in self._world.pipes:
            for side in (pipe.a, pipe.b):
                self._nothing_held(side)
        for node in self._world.nodes:
            if len(node.exports) or node.exports._of:
                raise BugError("exports are left")

    def _nothing_held(self, side: Side) -> None:
        session = side.session
        mirror, calls = session.mirror, session.calls
        if side.asks or len(calls) or calls._desks or calls._of:
            raise BugError("requests are left")
        left = (
            mirror.outposts._outposts,
            mirror.outposts._of,
            mirror.watches._tokens,
            mirror.speakers._speakers,
        )
        counts = len(mirror), len(mirror.pairs), len(mirror.ear), session.outbox.waiting
        if any(counts) or any(left):
            raise BugError(f"something is left: {left} {len(mirror.ear)} {session.outbox.waiting}")
