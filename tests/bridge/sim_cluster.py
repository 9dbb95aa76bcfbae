"""What becomes of the nodes of the simulation: they dial, part, die, come again, have rivals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.bridge._errors import NameTakenError

if TYPE_CHECKING or not __package__:
    from sim_judge import Judge
    from sim_network import Network
    from sim_nodes import Node, Pipe
    from sim_world import BugError, World
else:
    from .sim_judge import Judge
    from .sim_network import Network
    from .sim_nodes import Node, Pipe
    from .sim_world import BugError, World


class Cluster:
    """Makes nodes, and has them meet; whether they are let in is looked at here."""

    def __init__(self, world: World, judge: Judge, network: Network) -> None:
        self._world = world
        self._judge = judge
        self._network = network
        self._lives = 0

    def birth(self, name: str) -> None:
        """A node of that name comes to life."""
        node = self._make(name)
        self._world.nodes.append(node)
        if self._world.rng.random() < 0.7:
            node.make()
        node.exports.name("x", node.named.line(), ["*"], node.named.rights, node.port)

    def _make(self, name: str) -> Node:
        self._lives += 1
        node = Node(self._world, name, self._lives, self._judge.got)
        node.named = node.make()
        return node

    def dial(self, one: int, other: int) -> None:
        """Have one node dial another, by their places."""
        self.join(self._world.nodes[one], self._world.nodes[other])

    def join(self, one: Node, other: Node) -> Pipe:
        """Have one node dial another. Nothing is said yet."""
        world = self._world
        pipe = Pipe(one, other)
        world.say(pipe.a.node.name, "dials", pipe.b.node.name)
        world.pipes.append(pipe)
        world.dialled.add(pipe.pair)
        for side in (pipe.a, pipe.b):
            world.by_session[side.session] = side
            side.node.sides.append(side)
        return pipe

    def do_dial(self, node: Node) -> None:
        world = self._world
        one, other = world.rng.sample(range(len(world.nodes)), 2)
        if len(world.pipes) < 4:
            self.dial(one, other)

    def do_close(self, node: Node) -> None:
        world = self._world
        side = world.up(node)
        if side is not None and not side.session.finished:
            world.say(node.name, "closes the connection with", side.other.node.name)
            side.closed = world.last_message
            world.spoilt.add(side.pipe.pair)
            side.session.close(world.now)

    def do_restart(self, node: Node) -> None:
        """A node dies without a word, and comes again as another."""
        world = self._world
        world.say(node.name, "dies, and comes again")
        for pipe in world.pipes:
            for side in (pipe.a, pipe.b):
                if side.node is node and not side.settled:
                    side.settled = True
                    self._network.harm(pipe)
                    if world.rng.random() < 0.3:
                        pipe.broken = True
                    side.on_way.clear()
                    side.asks.clear()
                    side.finding = False
        for dev in node.devs:
            dev.ended, dev.fault = True, None
        node.sides.clear()
        node.dead = True
        world.nodes.remove(node)
        self.birth(node.name)
        node.lines.clear()
        node.port.requests.clear()

    def do_return(self, node: Node) -> None:
        """It comes again, and is let in soon, whatever the others think of its former life."""
        world = self._world
        self.do_restart(node)
        ends = [len(world.nodes) - 1, world.rng.randrange(len(world.nodes) - 1)]
        world.rng.shuffle(ends)
        self.meet(*ends)

    def do_rival(self, node: Node) -> None:
        """Another node has the name of one that is connected, and lives: it is not let in."""
        side = self._world.up(node)
        if side is None or side.pipe.harmed or side.pipe.is_odd:
            return
        if side.session.finished or side.other.session.finished:
            return
        rival = self._make(side.other.node.name)
        ends = [rival, node]
        self._world.rng.shuffle(ends)
        for _ in range(3):
            pipe = self.join(*ends)
            self._network.flush()
            for end in (pipe.a, pipe.b):
                if not isinstance(end.session.reason, NameTakenError):
                    raise BugError(f"{end.node.name} is not told of a rival: {end.session.reason}")
            self._network.age(0.6)
            if not side.is_up or not side.other.is_up:
                raise BugError(f"a rival of {rival.name} has taken its place")

    def meet_all(self) -> None:
        """Nodes that are not connected can be."""
        world = self._world
        for one in range(len(world.nodes)):
            for other in range(one):
                names = frozenset({world.nodes[one].name, world.nodes[other].name})
                if not any(pipe.pair == names for pipe in world.pipes):
                    self.meet(one, other)

    def meet(self, one: int, other: int) -> None:
        """One dials the other, as long as that has to find out that a former life is over."""
        world = self._world
        until = world.now + 1.0
        while True:
            pipe = self.join(world.nodes[one], world.nodes[other])
            self._network.flush()
            if pipe.a.is_up and pipe.b.is_up:
                return
            reason = pipe.a.session.reason
            if world.now >= until or not isinstance(reason, NameTakenError):
                raise BugError(f"they cannot meet: {reason!r}")
            self._network.age(0.6)
