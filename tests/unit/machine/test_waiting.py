from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from orchestrator.base import waiting
from orchestrator.base.errors import ArmFailedError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import Stall, until


def test_first_value_that_is_there_is_returned() -> None:
    answers = iter([None, None, 0, 1])
    assert until(lambda: next(answers), within=5, waiting_for="it", every=0.001) == 0


def test_empty_text_is_a_value() -> None:
    assert until(lambda: "", within=5, waiting_for="it") == ""


def test_deadline_says_what_was_waited_for_and_the_last_thing_seen() -> None:
    started = time.monotonic()
    with pytest.raises(ArmFailedError) as caught:
        until(
            lambda: None, within=0.2, waiting_for="sshd", every=0.01, error=ArmFailedError,
            reason=Reason.GUEST_HANG, last_seen=lambda: "last words",
        )  # fmt: skip
    assert 0.15 < time.monotonic() - started < 5
    assert caught.value.message == "no sshd within 0 s"
    assert (caught.value.reason, caught.value.evidence) == ("guest-hang", "last words")


def test_deadline_is_the_benchs_failure_unless_said_otherwise() -> None:
    with pytest.raises(BenchError) as caught:
        until(lambda: None, within=0.01, waiting_for="it", every=0.001)
    assert caught.value.reason == "timeout"


def test_failure_that_is_seen_ends_the_wait_at_once() -> None:
    started = time.monotonic()

    def check() -> None:
        raise BenchError("panic", reason=Reason.HOST_PANIC)

    with pytest.raises(BenchError, match="panic"):
        until(check, within=60, waiting_for="it")
    assert time.monotonic() - started < 5


def test_stall_counts_from_the_last_change(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 104.0, 106.0, 107.5])
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: next(now)))
    stall = Stall()
    assert [stall.seconds(value) for value in (1, 1, 2, 2)] == [0, 3, 0, 1.5]
