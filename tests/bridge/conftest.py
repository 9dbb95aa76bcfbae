"""The fixtures of the tests of nodes and of child processes.

mypy, which knows one conftest, leaves this file out.
"""

from .child_world import path, world
from .nodes import discreet, no_socket_left, nothing_of_nodes_left, papers, way

__all__ = ["discreet", "no_socket_left", "nothing_of_nodes_left", "papers", "path", "way", "world"]
