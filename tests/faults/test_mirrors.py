"""Mirrors that are gone, slow, wrong or lying. `plan` with a Debian package requests the mirror's
lists, and `run` the package, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import mirrors
from tests.faults.mirrors import (
    DEB,
    PACKAGE,
    SUITE,
    Archive,
    Behaviour,
    Key,
    changed,
    fails,
    instead,
    rfc,
    serving,
    works,
)
from tests.faults.place import NOBODY, Fault, namespace
from tests.unit.kernels.fakes import folder_kernel

SCENARIO = f"""
name = "debs"
workload = "map"
[host]
accel = "exact"
[arms.baseline]
kernel = {{ deb = "{PACKAGE}", suite = "{SUITE}" }}
[arms.candidate]
kernel = {{ dir = "new" }}
"""
SHORTER = {"orchestrator.kernels.debian.apt._UPDATE_SECONDS": 2.0}


@pytest.fixture(scope="module")
def key() -> Iterator[Key]:
    with Key.made() as made:
        yield made


@pytest.fixture(scope="module")
def stranger() -> Iterator[Key]:
    with Key.made() as made:
        yield made


@pytest.fixture
def archive(fault: Fault, key: Key) -> Archive:
    return Archive(fault.place.root / "mirror", key).make()


def planned(fault: Fault, archive: Archive, behaviour: Behaviour, *more: str) -> None:
    scenario = fault.place.scenario(SCENARIO)
    with serving(archive.folder, behaviour) as mirror:
        fault.ends(
            "plan", scenario, *more, under=namespace(archive.key.trusted()), shorter=SHORTER,
            BAROMETER_MIRROR=mirror.url,
        )  # fmt: skip


def flipped(content: bytes) -> bytes:
    return content.replace(b"Version: 1.0", b"Version: 6.6")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


BEHAVIOURS: dict[str, Behaviour] = {
    "hangs": mirrors.hangs,
    "trickles": mirrors.trickles,
    "redirects-to-itself": mirrors.redirects_to_itself,
    "redirects-to-nobody": mirrors.redirects_to(NOBODY),
    "404": fails(404),
    "403": fails(403),
    "500": fails(500),
    "hangs-up": mirrors.hangs_up,
    "portal": mirrors.portal,
    "rubbish": changed("InRelease", lambda content: bytes(range(256)) * 20),
    "empty": changed("InRelease", lambda content: b""),
    "cut-release": changed("InRelease", cut),
    "changed-release": changed("InRelease", lambda text: text.replace(b"Debian", b"Nobian")),
    "unsigned": instead("InRelease", fails(404)),
    "lists-gone": instead("Packages", fails(404)),
    "lists-cut": changed("Packages", cut),
    "lists-changed": changed("Packages", flipped),
    "lists-hang": instead("Packages", mirrors.hangs),
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS.values(), ids=BEHAVIOURS)
def test_mirror(fault: Fault, archive: Archive, behaviour: Behaviour) -> None:
    planned(fault, archive, behaviour)


def test_nobody_serves_the_mirror(fault: Fault) -> None:
    fault.ends("plan", fault.place.scenario(SCENARIO))


def test_no_host_has_the_mirrors_name(fault: Fault) -> None:
    fault.ends(
        "plan", fault.place.scenario(SCENARIO), BAROMETER_MIRROR="http://mirror.invalid/debian",
        http_proxy="",
    )  # fmt: skip


def test_mirror_is_no_url(fault: Fault) -> None:
    fault.ends("plan", fault.place.scenario(SCENARIO), BAROMETER_MIRROR="no mirror at all")


@pytest.mark.parametrize(
    ("field", "days"), [("Date", 2.0), ("Valid-Until", -2.0)], ids=["future", "expired"]
)
def test_clocks_differ(fault: Fault, key: Key, field: str, days: float) -> None:
    """The mirror's Release is dated in the future, or has expired."""
    made = Archive(fault.place.root / "mirror", key, {field: rfc(days)}).make()
    planned(fault, made, works)


def test_stranger_signed_it(fault: Fault, archive: Archive, stranger: Key) -> None:
    fault_archive = Archive(archive.folder, stranger)
    fault_archive.sign()
    planned(fault, archive, works)


@pytest.mark.parametrize(
    "settings",
    [
        (f"arms.baseline.kernel.suite={SUITE}y",),
        (f"arms.baseline.kernel.deb={PACKAGE[:-1]}",),
        ('arms.baseline.kernel.version="9.9"',),
    ],
    ids=["suite", "package", "version"],
)
def test_mirror_has_no_such(fault: Fault, archive: Archive, settings: tuple[str, ...]) -> None:
    planned(fault, archive, works, *(word for value in settings for word in ("--set", value)))


def test_mirror_is_gone_and_its_lists_are_known(fault: Fault, archive: Archive) -> None:
    """Old lists of the same suites are used."""
    place = fault.place
    scenario, trusted = place.scenario(SCENARIO), namespace(archive.key.trusted())
    with serving(archive.folder, works) as mirror:
        url = mirror.url
        assert place.run("plan", scenario, under=trusted, BAROMETER_MIRROR=url).code == 0
    (place.cache / f"apt/{SUITE}/updated").unlink()
    (place.cache / f"apt/{SUITE}/updated").touch()
    fault.ends(
        "plan", scenario, under=trusted, BAROMETER_MIRROR=url,
        shorter={"orchestrator.kernels.debian.apt._FRESH_SECONDS": -1},
    )  # fmt: skip


def test_key_of_debians_archive_is_missing(fault: Fault, archive: Archive) -> None:
    scenario = fault.place.scenario(SCENARIO)
    hidden = namespace("mount -t tmpfs none /usr/share/keyrings")
    with serving(archive.folder, works) as mirror:
        fault.ends("plan", scenario, under=hidden, BAROMETER_MIRROR=mirror.url)


# packages ------------------------------------------------------------------------------------

PACKAGES: dict[str, Behaviour] = {
    "gone": instead(DEB, fails(404)),
    "cut": changed(DEB, cut),
    "changed": changed(DEB, lambda content: content[:-100] + b"\0" * 100),
    "hangs": instead(DEB, mirrors.hangs),
}


@pytest.mark.parametrize("behaviour", PACKAGES.values(), ids=PACKAGES)
def test_package(fault: Fault, archive: Archive, behaviour: Behaviour) -> None:
    ran(fault, archive, behaviour)


def ran(fault: Fault, archive: Archive, behaviour: Behaviour) -> None:
    scenario = fault.place.scenario(SCENARIO)
    with serving(archive.folder, behaviour) as mirror:
        fault.ends(
            "run", scenario, "--out", "out", under=namespace(archive.key.trusted()),
            shorter={"orchestrator.kernels.debian.apt._DOWNLOAD_SECONDS": 2.0},
            BAROMETER_MIRROR=mirror.url,
        )  # fmt: skip


def test_package_has_no_kernel(fault: Fault, key: Key) -> None:
    nothing = fault.place.root / "nothing"
    nothing.mkdir()
    ran(fault, Archive(fault.place.root / "mirror", key).make(nothing), works)


def test_kernel_in_the_package_is_none(fault: Fault, key: Key) -> None:
    kernel = folder_kernel(fault.place.root / "kernel", mirrors.RELEASE)
    (kernel / "vmlinuz").write_bytes(b"\0" * 5000)
    ran(fault, Archive(fault.place.root / "mirror", key).make(kernel), works)
