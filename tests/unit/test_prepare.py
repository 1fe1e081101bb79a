"""Builds for a plan before anything boots. LocalMachine nothing is built, only requested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.kernels import KernelBundle
from orchestrator.machine.guest import guestdisk
from orchestrator.machine.guest.guestdisk import GuestDisk
from orchestrator.machine.host.machine import Machine
from orchestrator.machine.nested import sharing
from orchestrator.machine.nested.sharing import NestedMachine
from orchestrator.machine.runner import images
from orchestrator.machine.runner.accel import Accel
from orchestrator.machine.runner.images import HostImage, PayloadImage
from orchestrator.machine.vm.domain import Disk
from orchestrator.run import kernels as run_kernels
from orchestrator.run import prepare as prepare_module
from orchestrator.run.kernels import RunKernels
from orchestrator.run.prepare import Prepared, prepare
from orchestrator.scenario.kernel_forms import DirKernel
from orchestrator.scenario.model import Scenario
from tests.unit.scenarios import map_scenario, metal_scenario, scenario

DISK = GuestDisk(Path("/cache/disk.raw"), {"systemd": "257"})


class Builder:
    """A stand-in for everything that is built, which records the requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.cache = Cache(folder / "cache")
        self.built: list[str] = []
        self.payload_of: list[str | None] = []
        self.disks_of: list[tuple[str, str]] = []
        monkeypatch.setattr(prepare_module, "preflight", lambda *_: None)
        monkeypatch.setattr(sharing, "choose_accel", lambda _accel: ("tcg", "no KVM"))
        self.checked: list[str] = []
        self.lacking = ""
        monkeypatch.setattr(run_kernels, "check_kernel", self._check)
        monkeypatch.setattr(run_kernels, "materialise_kernel", self._kernel)
        monkeypatch.setattr(images, "host_image", self._host)
        monkeypatch.setattr(images, "payload_image", self._payload)
        monkeypatch.setattr(sharing, "guest_disk", self._disk)

    def __call__(
        self, chosen: Scenario, machine: Machine | tuple[Accel, str] | None = None
    ) -> Prepared:
        return prepare(chosen, machine or self.nested(chosen), RunKernels(self.cache), Progress())

    def nested(self, chosen: Scenario) -> NestedMachine:
        self.machine = NestedMachine.of(chosen.host, chosen.device)
        return self.machine

    def _check(self, spec: DirKernel, cache: Cache) -> None:
        self.checked.append(spec.dir.name)
        if spec.dir.name == self.lacking:
            raise ScenarioError("there is none", reason=Reason.NO_SUCH_KERNEL)

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
    build(scenario())
    assert (build.payload_of, build.disks_of) == (["7.0-guest"], [])
    assert build.machine.disks() == (Disk(Path("/cache/payload"), "payload"),)
    assert build.machine.guest_packages() == {"dropbear": "2025"}


def test_guest_that_boots_from_a_disk_is_on_it_and_not_in_the_payload(build: Builder) -> None:
    build(scenario("guest.boot=disk", "guest.cmdline=quiet nosmp"))
    assert build.payload_of == [None]
    assert build.disks_of == [("7.0-guest", "console=ttyS0 panic=-1 quiet nosmp")]
    assert {*build.machine.disks()} == {
        Disk(Path("/cache/payload"), "payload"), Disk(DISK.path, "guest"),
    }  # fmt: skip
    assert build.machine.guest_packages() == DISK.packages


def test_kernel_of_a_guest_on_a_disk_is_known_to_the_plan(build: Builder) -> None:
    prepared = build(scenario("guest.boot=disk"))
    assert prepared.guest_kernel is not None
    assert prepared.guest_kernel.release == "7.0-guest"


def test_workload_without_a_guest_has_no_disk_whatever_the_scenario_says(build: Builder) -> None:
    prepared = build(map_scenario("guest.kernel.dir=guest", "guest.boot=disk"))
    assert (prepared.guest_kernel, len(build.machine.disks())) == (None, 1)
    assert (build.payload_of, build.disks_of) == ([None], [])


@pytest.mark.parametrize("cmdline", ["a'b", "x" * 2100])
def test_command_line_that_grub_cannot_give_is_said_with_its_key(
    build: Builder, monkeypatch: pytest.MonkeyPatch, cmdline: str
) -> None:
    built: list[str] = []
    refuse: Callable[..., Any] = lambda *what: built.append("root")  # noqa: E731
    monkeypatch.setattr(sharing, "guest_disk", guestdisk.guest_disk)
    monkeypatch.setattr(guestdisk, "root_disk", refuse)
    with pytest.raises(ScenarioError, match=r"^guest\.cmdline: .*command line") as caught:
        build(scenario("guest.boot=disk", f'guest.cmdline="{cmdline}"'))
    assert (caught.value.reason, caught.value.exit_code) == ("guest-cmdline", 2)
    assert (built, build.payload_of) == ([], [])


def test_module_that_the_guests_kernel_lacks_is_not_said_of_its_command_line(
    build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(kernel: KernelBundle, cmdline: str, cache: Cache) -> GuestDisk:
        raise ScenarioError("no module ext4", reason=Reason.KERNEL_LACKS_MODULE)

    monkeypatch.setattr(sharing, "guest_disk", lacking)
    with pytest.raises(ScenarioError, match=r"^guest\.kernel: no module ext4"):
        build(scenario("guest.boot=disk"))


def test_command_line_that_grub_could_not_give_is_no_matter_without_it(build: Builder) -> None:
    build(scenario('guest.cmdline="a\'b"'))
    assert len(build.machine.disks()) == 1


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
            raise ScenarioError("no such thing", hint="another", reason=Reason.NO_SUCH_PARAMETER)

    monkeypatch.setattr(prepare_module, "check_parameter", check)
    parameters = 'parameters={"vfio.old" = 1, "vfio.new" = 1}'
    with pytest.raises(ScenarioError) as caught:
        build(scenario(f"arms.candidate.{parameters}"))
    assert caught.value.message == 'arms.candidate.parameters."vfio.new": no such thing'
    assert (caught.value.hint, build.payload_of) == ("another", [])
    assert asked == [("7.0-new", "vfio.old"), ("7.0-new", "vfio.new")]


class Examined:
    """A metal host that is surveyed before anything else happens, and never changed."""

    name, shell = "root@gpu1.lab", "its shell"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, build: Builder) -> None:
        self.done: list[str] = []
        self.refusal: BenchError | None = None
        self._build = build
        monkeypatch.setattr(prepare_module, "preflight", self._preflight)

    def survey(self) -> tuple[str, ...]:
        self.done.append("survey")
        if self.refusal:
            raise self.refusal
        return "device: 0000:3b:00.0", "no reset"

    def choose_accel(self) -> tuple[Accel, str]:
        return "kvm", "its processor has a hypervisor"

    def provide(
        self, kernels: dict[str, KernelBundle], guest: object, guest_kernel: KernelBundle | None,
        cache: Cache,
    ) -> None:  # fmt: skip
        release = guest_kernel.release if guest_kernel else None
        self.done.append(f"provide {[*kernels]}, guest {release}")

    def _preflight(
        self, scenario: Scenario, cache: Cache, progress: Progress, machine: Machine
    ) -> None:
        assert self._build.built == []
        assert machine is cast(Machine, self)
        self.done.append(f"preflight by {machine.shell}")


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, build: Builder) -> Examined:
    return Examined(monkeypatch, build)


def test_machine_is_examined_first_and_provided_for_once_the_kernels_are_there(
    examined: Examined, build: Builder, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = build(metal_scenario(), cast(Machine, examined))
    assert examined.done == [
        "survey", "preflight by its shell", "provide ['baseline', 'candidate'], guest None",
    ]  # fmt: skip
    assert (prepared.accel, prepared.accel_reason) == ("kvm", "its processor has a hypervisor")
    text = capsys.readouterr().err
    assert "device: 0000:3b:00.0\nno reset\n" in text
    assert "accelerator: kvm (its processor has a hypervisor)" in text


@pytest.mark.parametrize("chosen", [metal_scenario(), map_scenario()])
def test_host_that_nothing_will_be_done_on_is_left_alone(
    build: Builder, chosen: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither machine is surveyed, nothing boots, no image is made."""
    monkeypatch.setattr(prepare_module, "preflight", lambda *_: pytest.fail("looked at"))
    monkeypatch.setattr(sharing, "choose_accel", lambda *_: pytest.fail("looked at"))
    prepared = build(chosen, ("tcg", "it is emulated"))
    assert build.payload_of == []
    assert (prepared.accel, prepared.accel_reason) == ("tcg", "it is emulated")
    assert [*prepared.kernels] == ["baseline", "candidate"]


def test_no_kernel_is_built_for_a_metal_host_that_cannot_be_taken(
    examined: Examined, build: Builder
) -> None:
    examined.refusal = BenchError("it is this machine", reason=Reason.HOST_IS_RUNNER)
    with pytest.raises(BenchError, match="it is this machine"):
        build(metal_scenario(), cast(Machine, examined))
    assert (build.checked, build.built) == ([], [])


def test_machine_gets_the_kernel_of_its_guests(examined: Examined, build: Builder) -> None:
    chosen = metal_scenario("workload=guest-boot", "guest={kernel = {dir = 'guest'}}")
    prepared = build(chosen, cast(Machine, examined))
    assert examined.done[-1].endswith("guest 7.0-guest")
    assert prepared.guest_kernel is not None
