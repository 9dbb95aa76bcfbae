"""What another node's cluster is told, and when nothing is said to it."""

from __future__ import annotations

import pytest

from backplane.otp import Groups
from backplane.otp._neighbours import Neighbour

pytestmark = pytest.mark.anyio


async def test_one_that_was_not_met_yet_is_told_nothing_but_all_that_there_is_when_it_is() -> None:
    neighbour = Neighbour("a", "b", Groups())

    neighbour.tell(["free", "name"])
    assert list(neighbour._unsaid) == []

    neighbour.greet([], [])
    neighbour.tell(["free", "name"])
    said = list(neighbour._unsaid)
    assert said[0] == ["hello"]
    assert said[-2:] == [["said"], ["free", "name"]]
