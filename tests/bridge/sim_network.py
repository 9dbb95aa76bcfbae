"""The network of the simulation: what was written arrives split, late, or never; and time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.bridge._errors import RefusedError

if TYPE_CHECKING or not __package__:
    from sim_judge import Judge
    from sim_nodes import Node, Pipe, Side
    from sim_world import DOWN, LIMITS, BugError, World
else:
    from .sim_judge import Judge
    from .sim_nodes import Node, Pipe, Side
    from .sim_world import DOWN, LIMITS, BugError, World


class Network:
    """Carries bytes between the two ends of each connection, or does not."""

    def __init__(self, world: World, judge: Judge) -> None:
        self._world = world
        self._judge = judge

    # -- bytes -----------------------------------------------------------------------------------

    def write(self, side: Side) -> bool:
        """Take what is to be written, a frame at a time."""
        session, out = side.session, side.out
        wrote = False
        while True:
            session.outbox.pump()
            before = len(out)
            data = session.outbox.take(1)
            frames = before - len(out)
            side.said += frames
            if not side.pipe.broken and (data or frames):
                side.on_way.append((data, frames))
            if not data:
                break
            wrote = True
        if wrote and not side.stalled:
            session.pulse.wrote(self._world.now)
        if session.outbox.waiting > LIMITS.outbox_hard:
            raise BugError("more waits than may")
        return wrote

    def carry(self, side: Side, most: int, split: int = 0) -> bool:
        """Have some frames arrive that were written at a side; then look at what they did."""
        on_way = side.on_way
        if not on_way or side.stalled:
            return False
        other = side.other
        if other.node.dead:
            on_way.clear()
            return False
        session, now = other.session, self._world.now
        for _ in range(min(most, len(on_way))):
            data, frames = on_way.popleft()
            if not data:
                pass  # the last thing that was done over there is told by no frame
            elif split and len(data) > 1:
                at = 1 + split % (len(data) - 1)
                session.receive(data[:at], now)
                session.receive(data[at:], now)
            else:
                session.receive(data, now)
            other.came += frames
            self._link(side, other)
            self._judge.poll(other.node)
        self.look(other)
        return True

    def _link(self, side: Side, other: Side) -> None:
        """What a side has done with the other's pairs holds there, once that has come."""
        intents = side.intents
        while intents and intents[0][0] <= other.came:
            _, link, listener, speaker = intents.popleft()
            if link and not listener.ended and other.session.state is not DOWN:
                other.linked.add((listener, speaker))
            else:
                other.linked.discard((listener, speaker))

    def look(self, side: Side) -> None:
        """See whether a session has ended, and what that has done."""
        session = side.session
        if side.settled or session.state is not DOWN:
            return
        side.settled = True
        self._world.say(side.node.name, "has lost", side.other.node.name, repr(session.reason))
        self._judge.lost(side)
        if isinstance(session.reason, RefusedError):
            self.write(side)  # as what drives it does: the other hears why
        side.node.sides.remove(side)
        side.node.lost = session

    def close_down(self, side: Side) -> bool:
        """If one side is down and all it said has come, the other one sees the end."""
        other = side.other
        if not side.settled or other.settled or side.on_way or side.pipe.broken:
            return False
        other.session.eof()
        self.look(other)
        return True

    def flush(self) -> None:
        """Until nothing moves but what the network holds back."""
        world = self._world
        moved = True
        turns = 0
        while moved:
            moved = False
            turns += 1
            if turns > 100:
                raise BugError("they never stop")
            for pipe in world.pipes:
                for side in (pipe.a, pipe.b):
                    if not side.settled:
                        self.look(side)
                        self.write(side)
                    moved |= self.carry(side, 1000)
                    moved |= self.close_down(side)
        world.pipes = [p for p in world.pipes if not (p.a.settled and p.b.settled)]

    def age(self, seconds: float) -> None:
        """Let time pass; bytes that nobody holds back arrive meanwhile."""
        world = self._world
        self.flush()
        world.now += seconds
        for pipe in world.pipes:
            for side in (pipe.a, pipe.b):
                if not side.settled:
                    side.session.tick(world.now)
                    self.look(side)
        self.flush()

    # -- what it does by chance --------------------------------------------------------------------

    def a_side(self) -> Side | None:
        """An end of one of the connections."""
        rng, pipes = self._world.rng, self._world.pipes
        if not pipes:
            return None
        pipe = rng.choice(pipes)
        return pipe.a if rng.random() < 0.5 else pipe.b

    def do_move(self, node: Node) -> None:
        side = self.a_side()
        if side is not None:
            if not side.settled:
                self.look(side)
                self.write(side)
            rng = self._world.rng
            self.carry(side, rng.randrange(1, 5), rng.randrange(200) if rng.random() < 0.3 else 0)
            self.close_down(side)

    def do_flush(self, node: Node) -> None:
        self.flush()

    def do_time(self, node: Node) -> None:
        self.age(self._world.rng.choice((0.1, 0.5, 1.0)))

    def do_pump(self, node: Node) -> None:
        side = self.a_side()
        if side is not None:
            side.session.outbox.pump()

    # -- the harm it does --------------------------------------------------------------------------

    def harm(self, pipe: Pipe) -> None:
        """From now on a connection may be lost, and need not come to anything."""
        pipe.harmed = True
        self._world.spoilt.add(pipe.pair)

    def do_stall(self, node: Node) -> None:
        side = self.a_side()
        if side is not None:
            self._world.say("what", side.node.name, "writes is held back")
            side.stalled = True
            self.harm(side.pipe)

    def do_resume(self, node: Node) -> None:
        self.resume()

    def resume(self) -> None:
        """Hold nothing back any longer."""
        world = self._world
        for pipe in world.pipes:
            for side in (pipe.a, pipe.b):
                if side.stalled:
                    world.say("what", side.node.name, "writes comes again")
                    side.stalled = False
                    if not side.settled:
                        side.session.pulse.wrote(world.now)

    def do_cut(self, node: Node) -> None:
        """A connection breaks; of what is on its way only some arrives; who notices is chance."""
        side = self.a_side()
        if side is None:
            return
        pipe = side.pipe
        world, rng = self._world, self._world.rng
        world.say("the connection of", pipe.a.node.name, "with", pipe.b.node.name, "breaks")
        self.harm(pipe)
        pipe.broken = True
        for each in (pipe.a, pipe.b):
            keep = rng.randrange(len(each.on_way) + 1)
            while len(each.on_way) > keep:
                each.on_way.pop()
            if rng.random() < 0.3 and not each.other.settled and not each.on_way:
                each.other.session.receive(b"\0\0", world.now)  # half a frame
        if rng.random() < 0.6 and not side.settled:
            side.on_way.clear()
            side.session.eof()
            self.look(side)

    def do_notice(self, node: Node) -> None:
        """Of those whose connection is broken some notice."""
        for pipe in self._world.pipes:
            if pipe.broken:
                for side in (pipe.a, pipe.b):
                    if not side.settled and self._world.rng.random() < 0.5:
                        side.session.eof()
                        self.look(side)
