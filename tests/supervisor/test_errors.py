"""What a supervisor raises says what was tried, and survives a pickle."""

from __future__ import annotations

import pickle

import pytest

from backplane import supervisor
from backplane.supervisor import (
    AlreadyPresentError,
    AlreadyStartedError,
    ChildNotFoundError,
    ChildRestartingError,
    ChildRunningError,
    MaxChildrenError,
    MaxRestartsError,
    NotRunningError,
    NotStartedError,
    SelfCallError,
    SpecError,
    StartError,
    StartTimeoutError,
    SupervisorError,
    UnresponsiveError,
    ZombieLimitError,
)

TEXTS: dict[SupervisorError, str] = {
    SupervisorError("why"): "why",
    SpecError("why"): "why",
    AlreadyPresentError("s", "a"): "supervisor 's' has a child 'a', which does not run: "
    "use restart_child, or delete_child first",
    AlreadyStartedError("s", "a"): "child 'a' of supervisor 's' is already running",
    ChildNotFoundError("s", "a"): "supervisor 's' has no child 'a'",
    ChildRestartingError("s", "a"): "child 'a' of supervisor 's' is being restarted: "
    "terminate it first",
    ChildRunningError("s", "a"): "child 'a' of supervisor 's' is running: terminate it first",
    MaxChildrenError("s", 5): "supervisor 's' has its maximum of 5 children",
    MaxRestartsError("s", "a", "why"): "supervisor 's' gave up on child 'a': why",
    NotRunningError("s", "stop"): "cannot stop: supervisor 's' is not running",
    NotStartedError("a"): "child 'a' returned before it called task_status.started()",
    SelfCallError("s", "a", "stop"): "child 'a' cannot stop: its supervisor 's' "
    "is waiting for it to start or to stop",
    StartError("s", "a"): "child 'a' of supervisor 's' did not start",
    StartTimeoutError("a", 2.0): "child 'a' did not start within 2 seconds",
    UnresponsiveError("a", 2.0): "child 'a' did not report alive() within 2 seconds",
    UnresponsiveError("a", 2.0, "line 1"): "child 'a' did not report alive() within 2 seconds; "
    "it stood at:\nline 1",
    ZombieLimitError("s", 1, ("a", "b")): "supervisor 's' has more than 1 zombies: a, b; "
    "only a new process gets rid of them",
}


@pytest.mark.parametrize(("error", "text"), TEXTS.items(), ids=lambda each: type(each).__name__)
def test_an_error_says_what_was_tried_also_after_a_pickle(
    error: SupervisorError, text: str
) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert str(error) == str(copy) == text
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)


def test_a_child_that_did_not_start_is_named_with_the_reason() -> None:
    error = StartError("s", "a")
    error.__cause__ = OSError("no such file")

    assert str(error) == "child 'a' of supervisor 's' did not start: OSError: no such file"


def test_every_error_that_a_supervisor_raises_is_looked_at_here() -> None:
    public = {getattr(supervisor, name) for name in supervisor.__all__}
    errors = {
        each for each in public if isinstance(each, type) and issubclass(each, SupervisorError)
    }

    assert errors == {type(error) for error in TEXTS}
