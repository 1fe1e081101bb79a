"""Leases with two owners, a clock that is moved, and boots in between."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keeper import leases
from keeper import machine as real
from keeper.journaling import records
from tests.unit.agents.keeper.machines import OWNER, THP, Machine, sealed_by_a_newer

OTHER = {**OWNER, "runner": "ci8", "user": "dev", "pid": 99}
STEPS: dict[str, dict[str, Any]] = {
    "write": {"path": THP, "value": "always"},
    "modules": {"names": ["vfio-pci"]},
    "bind": {"address": "0000:3b:00.0", "driver": "vfio-pci"},
    "claim": {"paths": ["/boot/x"]},
    "tracing": {"instance": "barometer", "group": "barotime"},
    "guest": {"uuid": "01234567-89ab-cdef-0123-456789abcdef"},
    "original": {},
    "deadman": {"seconds": 60},
    "boot": {"how": "reboot", "extend": 600},
    "putback": {"volatile": False},
    "kernel_restored": {},
    "last_words": {},
}
"""Every live verb that requires a lease."""


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.up, self.epoch = 1000.0, 1.7e9
        monkeypatch.setattr(real, "boottime", lambda: self.up)
        monkeypatch.setattr(real, "realtime_ns", lambda: int(self.epoch * 1e9))

    def goes(self, seconds: float) -> None:
        self.up += seconds
        self.epoch += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_machine_that_nobody_held_has_nothing_of_it_left(machine: Machine) -> None:
    before = machine.all()
    machine.acquire()
    machine.done("release")
    assert machine.all() == before
    assert machine.done("status")["leases"] == []
    assert machine.all() == before


def test_second_owner_is_told_who_holds_it_and_for_how_long(
    machine: Machine, clock: Clock
) -> None:
    machine.acquire(ttl=60.0)
    clock.goes(12)
    answer = machine.acquire(owner=OTHER)
    assert answer["refused"] == "lease-held"
    assert answer["message"] == (
        "the machine is held by lab@ci7 (process 4711, nightly.toml) for another 48 s"
    )
    assert answer["holder"]["owner"] == OWNER
    assert answer["holder"]["left"] == 48


def test_leases_of_different_devices_live_side_by_side(machine: Machine) -> None:
    first = machine.acquire(resources=["0000:3b:00.0"])["token"]
    second = machine.acquire(resources=["0000:5e:00.0"], owner=OTHER)["token"]
    assert machine.acquire(resources=["0000:5e:00.0", "machine"])["refused"] == "lease-held"
    machine.done("release", token=second)
    assert [lease["token"] for lease in machine.done("status")["leases"]] == [first]


def test_expired_lease_is_replaced_by_one_with_a_greater_token(
    machine: Machine, clock: Clock
) -> None:
    first = machine.acquire(ttl=60.0)["token"]
    clock.goes(60.5)
    assert machine.done("status")["leases"][0]["expired"] is True
    second = machine.acquire(owner=OTHER)
    assert second["token"] > first
    assert [lease["owner"] for lease in machine.done("status")["leases"]] == [OTHER]


def test_token_grows_though_the_clock_was_set_back(machine: Machine, clock: Clock) -> None:
    first = machine.acquire()["token"]
    machine.done("claim", paths=["/boot/x"])
    clock.up += 61
    clock.epoch -= 86400
    assert machine.acquire(owner=OTHER)["token"] > first


@pytest.mark.parametrize("verb", [*STEPS, "confirm"])
def test_stale_token_is_refused_at_every_step(machine: Machine, clock: Clock, verb: str) -> None:
    stale = machine.acquire()["token"]
    clock.goes(61)
    machine.acquire(owner=OTHER)
    before = machine.all()
    answer = machine.ask(verb, token=stale, **STEPS.get(verb, {}))
    assert answer["refused"] == "lease-lost"
    assert "dev@ci8 (process 99, nightly.toml) has it now" in answer["message"]
    assert answer["holder"]["owner"] == OTHER
    assert machine.all() == before


@pytest.mark.parametrize("verb", STEPS)
def test_expired_token_is_refused_at_every_step(machine: Machine, clock: Clock, verb: str) -> None:
    machine.acquire()
    clock.goes(61)
    assert machine.refused(verb, **STEPS[verb]) == "lease-lost: the lease expired 1 s ago"


def test_lease_that_nobody_took_is_renewed_though_it_expired(
    machine: Machine, clock: Clock
) -> None:
    machine.acquire(ttl=60.0)
    clock.goes(100)
    assert machine.done("renew")["left"] == 60
    machine.done("claim", paths=["/boot/x"])


def test_lease_that_was_taken_is_not_renewed_or_released(machine: Machine, clock: Clock) -> None:
    stale = machine.acquire()["token"]
    clock.goes(100)
    machine.acquire(owner=OTHER)
    assert machine.ask("renew", token=stale)["refused"] == "lease-lost"
    assert machine.ask("release", token=stale)["refused"] == "lease-lost"


def test_clock_that_is_set_does_not_expire_a_lease_of_this_boot(
    machine: Machine, clock: Clock
) -> None:
    machine.acquire(ttl=60.0)
    clock.epoch += 86400
    assert machine.done("status")["leases"][0]["left"] == 60


def test_lease_goes_on_over_a_boot_by_the_real_time_clock(machine: Machine, clock: Clock) -> None:
    machine.acquire(ttl=60.0)
    machine.done("original")
    machine.done("boot", how="reboot", extend=600)
    machine.done("renew")  # the heartbeat before the machine goes down
    clock.goes(100)
    clock.up = 3.0
    machine.boots()
    assert machine.done("status")["leases"][0]["left"] == 500
    machine.done("confirm")
    assert machine.done("status")["leases"][0]["left"] == 60


@pytest.mark.parametrize("real_time", [-86400, 86400])
def test_bad_real_time_clock_neither_lengthens_a_lease_nor_loses_it(
    machine: Machine, clock: Clock, real_time: float
) -> None:
    machine.acquire(ttl=60.0)
    machine.done("boot", how="reboot", extend=600)
    clock.goes(100)
    clock.epoch += real_time
    machine.boots()
    assert machine.done("status")["leases"][0]["left"] <= 600
    machine.done("confirm")
    assert machine.done("status")["leases"][0]["left"] == 60


def test_lease_does_not_expire_while_the_keeper_is_at_work(machine: Machine, clock: Clock) -> None:
    machine.acquire(ttl=60.0)
    clock.goes(30)
    script = '#!/bin/sh\nPATH=/usr/bin:/bin\ncp "$ROOT"/var/lib/barometer/lease-* "$ROOT/seen"\n'
    machine.file("/fakes/modprobe", script).chmod(0o755)
    machine.done("modules", names=["vfio-pci"])
    assert json.loads(machine.text("/seen"))["expires_boottime"] == 1030 + 300
    assert machine.done("status")["leases"][0]["left"] == 60


def test_first_heartbeat_after_a_boot_ends_its_extension(machine: Machine, clock: Clock) -> None:
    machine.acquire(ttl=60.0)
    machine.done("boot", how="reboot", extend=600)
    clock.goes(100)
    machine.boots()
    assert machine.done("renew")["left"] == 60


def test_there_is_always_a_lease_to_be_seen(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead man's switch looks for a lease without waiting for the lock."""
    first = machine.acquire()["token"]
    folder = machine.root / "var/lib/barometer"
    seen: list[int] = []
    remove = leases.Lease.remove

    def watched(lease: leases.Lease) -> None:
        seen.append(len([*folder.glob("lease-*.json")]))
        remove(lease)

    monkeypatch.setattr(leases.Lease, "remove", watched)
    machine.acquire(owner=OTHER, takeover=first)
    assert seen == [2]
    assert len([*folder.glob("lease-*.json")]) == 1


def test_lease_that_a_keeper_was_killed_over_is_none(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine.acquire()["token"]

    def killed(_: leases.Lease) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(leases.Lease, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            machine.acquire(owner=OTHER, takeover=first)
    assert len([*(machine.root / "var/lib/barometer").glob("lease-*.json")]) == 2
    assert [lease["token"] for lease in machine.done("status")["leases"]] == [first]
    machine.done("renew", token=first)
    second = machine.acquire(owner=OTHER, takeover=first)["token"]
    assert [lease["token"] for lease in machine.done("status")["leases"]] == [second]
    machine.done("release")
    assert not (machine.root / "var/lib/barometer").exists()


def test_live_lease_is_taken_over_by_its_token_alone(machine: Machine) -> None:
    first = machine.acquire()["token"]
    assert machine.acquire(owner=OTHER, takeover=first + 1)["refused"] == "lease-held"
    assert machine.acquire(owner=OTHER, takeover=first)["token"] > first
    assert machine.ask("renew", token=first)["refused"] == "lease-lost"


def test_changes_left_by_another_are_put_back_before_anything_is_changed(
    machine: Machine, clock: Clock
) -> None:
    machine.acquire()
    machine.done("write", path=THP, value="always")
    clock.goes(61)
    assert machine.acquire(owner=OTHER)["unfinished"] is True
    for verb in ("write", "modules", "bind", "claim", "tracing", "guest", "original", "deadman"):
        assert machine.refused(verb, **STEPS[verb]) == (
            "unfinished: 1 changes of a run before this one are not put back"
        )
    assert machine.refused("release").startswith("unfinished: ")
    machine.done("putback", volatile=False)
    assert machine.text(THP) == "defer\n"
    machine.done("write", path=THP, value="madvise")


def test_changes_under_anothers_live_lease_are_left_alone(machine: Machine) -> None:
    machine.acquire(resources=["0000:3b:00.0"])
    machine.done("write", path=THP, value="always")
    assert machine.acquire(resources=["0000:5e:00.0"], owner=OTHER)["unfinished"] is False
    assert machine.done("putback", volatile=False) == {"done": [], "failed": []}
    assert machine.text(THP) == "always\n"
    machine.done("release")
    assert machine.journal() == ["write"]


def test_own_changes_keep_the_lease(held: Machine) -> None:
    held.done("claim", paths=["/boot/x"])
    assert held.refused("release") == (
        "unfinished: 1 changes of the machine are not put back: claim"
    )


def test_lock_that_another_has_is_a_refusal(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real, "LOCK_SECONDS", 0.1)
    with real.locked():
        assert machine.refused("status") == (
            "machine-busy: another keeper has had /run/barometer.lock for 0 s"
        )


def test_damaged_lease_has_expired(machine: Machine, clock: Clock) -> None:
    first = machine.acquire()["token"]
    lease = machine.root / f"var/lib/barometer/lease-{first}.json"
    lease.write_bytes(lease.read_bytes()[:100])
    assert machine.ask("renew")["refused"] == "lease-lost"
    assert machine.done("status")["leases"] == []
    assert machine.acquire(owner=OTHER)["token"] > first
    assert not lease.exists()


def test_lease_of_a_newer_barometer_is_honoured(machine: Machine, clock: Clock) -> None:
    machine.acquire()
    (path,) = (machine.root / "var/lib/barometer").glob("lease-*.json")
    lease = records.unseal(path.read_bytes(), {})
    path.write_bytes(sealed_by_a_newer({**lease, "more": [1]}))
    assert machine.acquire(owner=OTHER)["refused"] == "lease-held"
    clock.goes(61)
    assert machine.acquire(owner=OTHER)["token"] > lease["token"]


def test_lease_without_a_schema_is_honoured(machine: Machine) -> None:
    machine.acquire()
    (path,) = (machine.root / "var/lib/barometer").glob("lease-*.json")
    path.write_text(json.dumps(records.unseal(path.read_bytes(), {})))
    assert machine.acquire(owner=OTHER)["refused"] == "lease-held"
