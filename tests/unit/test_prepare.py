"""What is built for a plan before anything boots: here nothing is built, it is only asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator import run
from orchestrator.bench import guestdisk, images
from orchestrator.bench.domain import Disk
from orchestrator.bench.guestdisk import GuestDisk
from orchestrator.bench.images import HostImage, PayloadImage
from orchestrator.cache import Cache
from orchestrator.errors import ScenarioError
from orchestrator.kernels import KernelBundle
from orchestrator.progress import Progress
from orchestrator.run import Prepared, prepare
from orchestrator.scenario import DirKernel, Scenario
from tests.unit.scenarios import map_scenario, scenario

DISK = GuestDisk(Path("/cache/disk.raw"), {"systemd": "257"})


class Builder:
    """Stands for all that is built, and knows what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.cache = Cache(folder / "cache")
        self.built: list[str] = []
        self.payload_of: list[str | None] = []
        self.disks_of: list[tuple[str, str]] = []
        monkeypatch.setattr(run, "chosen_accel", lambda wanted: ("tcg", "no KVM"))
        self.checked: list[str] = []
        self.lacking = ""
        monkeypatch.setattr(run, "checked", self._check)
        monkeypatch.setattr(run, "materialised", self._kernel)
        monkeypatch.setattr(images, "host_image", self._host)
        monkeypatch.setattr(images, "payload_image", self._payload)
        monkeypatch.setattr(run, "guest_disk", self._disk)

    def __call__(self, chosen: Scenario) -> Prepared:
        return prepare(chosen, self.cache, Progress())

    def _check(self, spec: DirKernel, cache: Cache) -> None:
        self.checked.append(spec.dir.name)
        if spec.dir.name == self.lacking:
            raise ScenarioError("there is none")

    def _kernel(self, spec: DirKernel, cache: Cache, progress: Progress, tag: str) -> KernelBundle:
        self.built.append(tag)
        known = SimpleNamespace(release=f"7.0-{spec.dir.name}", has_module=lambda name: True)
        return cast(KernelBundle, known)

    def _host(self, kernel: KernelBundle, suite: str, cache: Cache) -> HostImage:
        return HostImage(Path("/root"), Path("/modules"), Path("/initramfs"), {})

    def _payload(self, kernel: KernelBundle | None, cache: Cache) -> PayloadImage:
        self.payload_of.append(kernel.release if kernel else None)
        return PayloadImage(Path("/cache/payload"), {"dropbear": "2025"})

    def _disk(self, kernel: KernelBundle, cmdline: str, cache: Cache) -> GuestDisk:
        self.disks_of.append((kernel.release, cmdline))
        return DISK


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Builder:
    return Builder(monkeypatch, tmp_path)


def test_guest_that_boots_directly_is_in_the_payload_and_has_no_disk(build: Builder) -> None:
    prepared = build(scenario())
    assert (build.payload_of, build.disks_of) == (["7.0-guest"], [])
    assert prepared.guest_disk is None
    assert prepared.disks() == (Disk(Path("/cache/payload"), "payload"),)
    assert prepared.guest_packages() == {"dropbear": "2025"}


def test_guest_that_boots_from_a_disk_is_on_it_and_not_in_the_payload(build: Builder) -> None:
    prepared = build(scenario("guest.boot=disk", "guest.cmdline=quiet nosmp"))
    assert build.payload_of == [None]
    assert build.disks_of == [("7.0-guest", "console=ttyS0 panic=-1 quiet nosmp")]
    assert prepared.guest_disk == DISK
    assert {*prepared.disks()} == {
        Disk(Path("/cache/payload"), "payload"), Disk(DISK.path, "guest"),
    }  # fmt: skip
    assert prepared.guest_packages() == DISK.packages


def test_kernel_of_a_guest_on_a_disk_is_known_to_the_plan(build: Builder) -> None:
    prepared = build(scenario("guest.boot=disk"))
    assert prepared.guest_kernel is not None
    assert prepared.guest_kernel.release == "7.0-guest"


def test_workload_without_a_guest_has_no_disk_whatever_the_scenario_says(build: Builder) -> None:
    prepared = build(map_scenario("guest.kernel.dir=guest", "guest.boot=disk"))
    assert (prepared.guest_kernel, prepared.guest_disk) == (None, None)
    assert (build.payload_of, build.disks_of) == ([None], [])


@pytest.mark.parametrize("cmdline", ["a'b", "x" * 2100])
def test_command_line_that_grub_cannot_give_is_said_with_its_key(
    build: Builder, monkeypatch: pytest.MonkeyPatch, cmdline: str
) -> None:
    built: list[str] = []
    refuse: Callable[..., Any] = lambda *what: built.append("root")  # noqa: E731
    monkeypatch.setattr(run, "guest_disk", guestdisk.guest_disk)
    monkeypatch.setattr(guestdisk, "root_disk", refuse)
    with pytest.raises(ScenarioError, match=r"^guest\.cmdline: .*command line") as caught:
        build(scenario("guest.boot=disk", f'guest.cmdline="{cmdline}"'))
    assert (caught.value.reason, caught.value.exit_code) == ("guest-cmdline", 2)
    assert (built, build.payload_of) == ([], [])


def test_module_that_the_guests_kernel_lacks_is_not_said_of_its_command_line(
    build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(kernel: KernelBundle, cmdline: str, cache: Cache) -> GuestDisk:
        raise ScenarioError("no module ext4", reason="kernel-lacks-module")

    monkeypatch.setattr(run, "guest_disk", lacking)
    with pytest.raises(ScenarioError, match=r"^guest\.kernel: no module ext4"):
        build(scenario("guest.boot=disk"))


def test_command_line_that_grub_could_not_give_is_no_matter_without_it(build: Builder) -> None:
    assert build(scenario('guest.cmdline="a\'b"')).guest_disk is None


@pytest.mark.parametrize(
    ("lacking", "key"),
    [("old", "arms.baseline"), ("new", "arms.candidate"), ("guest", "guest")],
)
def test_every_kernel_is_checked_before_any_is_built(
    build: Builder, lacking: str, key: str
) -> None:
    build.lacking = lacking
    with pytest.raises(ScenarioError, match=rf"^{key}\.kernel: there is none"):
        build(scenario())
    assert build.built == []
    build.lacking = ""
    build(scenario())
    assert build.checked[-3:] == ["old", "new", "guest"]
    assert build.built == ["base", "cand", "gues"]


def test_parameter_that_an_arms_kernel_lacks_is_said_with_its_key(
    build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def check(kernel: KernelBundle, name: str) -> None:
        asked.append((kernel.release, name))
        if name == "vfio.new":
            raise ScenarioError("no such thing", hint="another", reason="no-such-parameter")

    monkeypatch.setattr(run, "check_parameter", check)
    parameters = 'parameters={"vfio.old" = 1, "vfio.new" = 1}'
    with pytest.raises(ScenarioError) as caught:
        build(scenario(f"arms.candidate.{parameters}"))
    assert caught.value.message == 'arms.candidate.parameters."vfio.new": no such thing'
    assert (caught.value.hint, build.payload_of) == ("another", [])
    assert asked == [("7.0-new", "vfio.old"), ("7.0-new", "vfio.new")]
