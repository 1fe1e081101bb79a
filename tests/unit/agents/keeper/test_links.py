"""Staged folders in the places that the machine looks in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.agents.keeper.machines import OWNER, RELEASE, Machine

PLACE, OWN = "/lib/modules/7.3.4", f"/lib/modules/{RELEASE}"
STAGED, OTHER = "/var/lib/barometer/17/a/modules", "/var/lib/barometer/17/b/modules"


@pytest.fixture
def staged(held: Machine) -> Machine:
    for folder in (STAGED, OTHER):
        held.file(f"{folder}/modules.dep", folder)
    held.file(f"{OWN}/modules.dep", "the machine's own")
    return held


def rest(machine: Machine) -> dict[str, tuple[int, bytes]]:
    """Return everything except barometer's own folder."""
    return {k: v for k, v in machine.all().items() if not k.startswith("var/lib/barometer")}


def leads(machine: Machine, path: str = PLACE) -> Path:
    return (machine.root / path[1:]).readlink()


def test_link_is_made_and_removed(staged: Machine) -> None:
    before = rest(staged)
    staged.done("link", path=PLACE, target=STAGED)
    assert leads(staged) == staged.root / STAGED[1:]
    assert staged.text(f"{PLACE}/modules.dep") == STAGED
    assert staged.done("putback", volatile=True) == {"done": [], "failed": []}
    assert staged.text(f"{PLACE}/modules.dep") == STAGED
    staged.power_on()
    assert staged.done("putback", volatile=False)["done"] == [f"{PLACE}: removed"]
    assert rest(staged).keys() == before.keys()
    assert staged.text(f"{STAGED}/modules.dep") == STAGED


def test_link_of_the_boot_before_leads_to_what_is_booted_now(staged: Machine) -> None:
    before = rest(staged)
    for target in (STAGED, OTHER, OTHER, STAGED):
        staged.done("link", path=PLACE, target=target)
        assert leads(staged) == staged.root / target[1:]
    assert staged.done("putback", volatile=False)["failed"] == []
    assert rest(staged) == before


def test_link_of_a_run_whose_journal_is_lost_is_replaced(staged: Machine) -> None:
    (staged.root / PLACE[1:]).symlink_to(staged.root / "var/lib/barometer/3/modules")
    staged.done("link", path=PLACE, target=STAGED)
    assert leads(staged) == staged.root / STAGED[1:]
    staged.done("putback", volatile=False)
    assert not os.path.lexists(staged.root / PLACE[1:])


@pytest.mark.parametrize("target", ["opt/modules", "var/lib/barometer-old/modules"])
def test_link_that_leads_elsewhere_is_not_barometers(staged: Machine, target: str) -> None:
    (staged.root / PLACE[1:]).symlink_to(staged.root / target)
    said = f"exists: {PLACE} is there already, and not of barometer's"
    assert staged.refused("link", path=PLACE, target=STAGED) == said
    assert leads(staged) == staged.root / target
    assert staged.refused("link", path=OWN, target=STAGED) == said.replace(PLACE, OWN)
    assert staged.journal() == []


def test_what_took_the_links_place_since_is_left(staged: Machine) -> None:
    staged.done("link", path=PLACE, target=STAGED)
    (staged.root / PLACE[1:]).unlink()
    staged.file(f"{PLACE}/modules.dep", "a package's")
    assert staged.done("putback", volatile=False) == {
        "done": [f"{PLACE}: somebody changed it since, so it is left as it is"], "failed": [],
    }  # fmt: skip
    assert staged.text(f"{PLACE}/modules.dep") == "a package's"


def test_folder_is_mounted_over_until_it_is_put_back(staged: Machine) -> None:
    before = rest(staged)
    staged.done("mount", path=OWN, source=STAGED)
    assert staged.text(f"{OWN}/modules.dep") == STAGED
    assert staged.text("/log").splitlines() == [
        f"mount --bind {staged.root}{STAGED} {staged.root}{OWN}"
    ]
    assert staged.done("putback", volatile=True)["failed"] == []
    assert staged.text("/log").splitlines()[1:] == [f"umount -l {staged.root}{OWN}"]
    assert rest(staged) == before


def test_mount_is_void_after_a_boot(staged: Machine) -> None:
    staged.done("mount", path=OWN, source=STAGED)
    staged.power_on()
    assert staged.done("putback", volatile=False) == {
        "done": ["mount: void since the machine was booted"], "failed": [],
    }  # fmt: skip
    assert staged.text(f"{OWN}/modules.dep") == "the machine's own"
    assert "umount" not in staged.text("/log")


def test_mount_that_fails_leaves_nothing(staged: Machine) -> None:
    staged.file("/fakes/mount", "#!/bin/sh\necho denied >&2; exit 32\n", 0o755)
    assert "failed with exit code 32: denied" in staged.refused("mount", path=OWN, source=STAGED)
    assert staged.journal() == []
    assert "umount" not in staged.text("/log")


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [("/lib/modules/9", STAGED, "mount: /lib/modules/9 is no folder to mount over"),
     ("/etc", STAGED, "path-refused: /etc is not below "),
     ("/lib/modules/link", STAGED, "mount: /lib/modules/link is no folder to mount over"),
     (OWN, "/boot/grub", "path-refused: /boot/grub is not below /var/lib/barometer"),
     (OWN, "/var/lib/barometer/out", "path-refused: /var/lib/barometer/out is not below "),
     (OWN, "/var/lib/barometer/../../../boot", "path-refused: "),
     (OWN, "/var/lib/barometer", "path-refused: "),
     (OWN, f"{STAGED}/no", f"mount: {STAGED}/no is no folder")],
)  # fmt: skip
def test_only_what_is_staged_is_mounted_and_only_over_folders(
    staged: Machine, path: str, source: str, reason: str
) -> None:
    (staged.root / "lib/modules/link").symlink_to(RELEASE)
    (staged.root / "var/lib/barometer/out").symlink_to("../../../boot")
    assert staged.refused("mount", path=path, source=source).startswith(reason)
    assert staged.text("/log") == ""
    assert staged.journal() == []


def test_neither_is_done_on_a_machine_that_is_anothers_by_now(staged: Machine) -> None:
    """The runner was frozen until its lease had expired."""
    late = staged.token
    staged.acquire(owner={**OWNER, "runner": "ci8"}, takeover=late)
    before = staged.all()
    for verb, request in (("link", {"path": PLACE, "target": STAGED}),
                          ("mount", {"path": OWN, "source": STAGED})):  # fmt: skip
        assert staged.ask(verb, **{**request, "token": late})["refused"] == "lease-lost"
    assert staged.all() == before
