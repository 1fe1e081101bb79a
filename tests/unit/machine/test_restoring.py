"""Hosts that are saved when they boot, and restored instead of booted; nothing is started."""

from __future__ import annotations

import contextlib
import json
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ArmFailedError, BenchError, EvidenceError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import charge, fault_of
from orchestrator.evidence.layout import TrialWriter
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.nested import restoring, sharing
from orchestrator.machine.nested.marks import ready_mark
from orchestrator.machine.nested.nested import BootSpec, StartedVm, describe_domain
from orchestrator.machine.nested.restoring import can_plug, saving
from orchestrator.machine.nested.saved import SavedHost, SavedHosts
from orchestrator.machine.nested.sharing import HostPool, NestedMachine, _is_restorable
from orchestrator.machine.runner.accel import Accel
from orchestrator.machine.runner.images import HostImage
from orchestrator.machine.runner.state import BenchState
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.transport.shell import Completed, Shell
from orchestrator.machine.vm.domain import Disk
from orchestrator.machine.vm.hypervisor import Connection
from orchestrator.scenario.vocabulary import ARMS
from tests.unit.manifests import facts_of
from tests.unit.scenarios import scenario

TOKEN, BOOT_ID = "0123456789ab", "58dcfb39-ced9-403f-9b65-0cae6c414847"
PANIC = ArmFailedError("the kernel panicked", reason=Reason.HOST_PANIC)


def spec_in(folder: Path, *overrides: str, accel: Accel = "exact") -> BootSpec:
    for name in ("vmlinuz", "root", "modules", "payload"):
        (folder / name).write_text(name)
    (folder / "tree/kernel").mkdir(parents=True, exist_ok=True)
    (folder / "tree/kernel/overlay.ko").write_text("overlay")
    (folder / "tree/modules.dep").write_text("kernel/overlay.ko:\n")
    chosen = scenario(*overrides)
    assert chosen.device.kind != "hostdev"
    return BootSpec(
        "baseline", chosen.nested, chosen.device, (),
        KernelBundle("7.3", folder / "vmlinuz", folder / "tree", None, "digest"),
        HostImage(folder / "root", folder / "modules", None, {}),
        (Disk(folder / "payload", "payload"),), accel, with_libvirt=False, pluggable=True,
    )  # fmt: skip


class FakeShell:
    """A host that has loaded some modules."""

    def __init__(self, *modules: str) -> None:
        self.modules = modules

    def run(self, *_: Any, **__: Any) -> Completed:
        return Completed("".join(f"{name}\n" for name in self.modules), "", 0)


class FakeDomain:
    """A domain that records what is done to it, and can refuse a command of QEMU's."""

    name = "barometer-1"

    def __init__(self, refuses: str = "") -> None:
        self.log: list[str] = []
        self.refuses = refuses
        self.plugged: list[str] = []

    def ask(self, _what: str, method: str, *arguments: Any) -> None:
        self.log.append(method)
        if method == "attachDeviceFlags":
            self.plugged.append(arguments[0])

    def xml(self) -> str:
        return f"<domain>{''.join(self.plugged)}</domain>"

    def monitor(self, request: str, *, qmp: bool = False) -> str:
        command = json.loads(request)
        self.log.append(command["execute"])
        if command["execute"] == self.refuses:
            return json.dumps({"error": {"desc": "refused"}})
        if command["execute"] == "migrate":
            Path(command["arguments"]["uri"].removeprefix("file:")).write_text("state")
        return json.dumps({"return": {"status": "completed"}})


class SaveLab:
    """A host that boots, up to where it may be saved."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.spec = spec_in(folder)
        self.folder = folder
        libvirt = cast(Connection, SimpleNamespace(version=dict))
        self.hosts = SavedHosts(Cache(folder / "cache"), libvirt)
        state = cast(BenchState, SimpleNamespace(token="0f0f", folder=folder))
        self.description = describe_domain(self.spec, TOKEN, state)
        (folder / TOKEN).mkdir()
        self.description.console.write_text("Linux version 7.3\n")
        mark = ready_mark(TOKEN).search(f"barometer: may be saved {TOKEN} {BOOT_ID}")
        patch.setattr(restoring, "wait_for_mark", lambda *_: mark)

    def save(self, domain: FakeDomain, shell: FakeShell | None = None) -> None:
        machine = SimpleNamespace(
            domain=domain, description=self.description, token=TOKEN,
            console=SimpleNamespace(path=self.description.console), folder=self.folder / TOKEN,
        )  # fmt: skip
        with saving(
            cast(StartedVm, machine), self.spec, RunKeys.make(), self.hosts, Progress()
        ) as keep:
            assert self.find() is None
            keep(cast(Shell, shell or FakeShell("overlay")))

    def find(self) -> SavedHost | None:
        return self.hosts.find(self.description, self.spec.kernel)


@pytest.fixture
def saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SaveLab:
    return SaveLab(tmp_path, monkeypatch)


def test_host_is_saved_before_it_has_keys_and_devices(saves: SaveLab) -> None:
    domain = FakeDomain()
    saves.save(domain)
    assert domain.log == [
        "suspend", "migrate-set-parameters", "migrate", "query-migrate",
        "attachDeviceFlags", "attachDeviceFlags", "resume",
    ]  # fmt: skip
    keys, device = domain.plugged
    assert "<serial>keys</serial>" in keys
    assert device.startswith("<shmem ")
    assert device in (saves.folder / TOKEN / "domain.xml").read_text()
    saved = saves.find()
    assert saved is not None
    assert (saved.token, saved.boot_id) == (TOKEN, BOOT_ID)
    assert saved.memory.read_text() == "state"
    assert saved.console.read_text() == "Linux version 7.3\n"
    assert saved.modules == saves.spec.image.modules
    assert [*saved.loaded] == ["overlay"]


@pytest.mark.parametrize("refuses", ["migrate-set-parameters", "migrate", "query-migrate"])
def test_host_that_cannot_be_saved_goes_on_all_the_same(
    saves: SaveLab, refuses: str, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = FakeDomain(refuses)
    saves.save(domain)
    assert domain.log[-1] == "resume"
    assert saves.find() is None
    assert "host: not saved: QEMU refused" in capsys.readouterr().err


def test_host_with_a_module_of_which_nothing_is_known_is_not_saved(
    saves: SaveLab, capsys: pytest.CaptureFixture[str]
) -> None:
    saves.save(FakeDomain(), FakeShell("overlay", "stranger"))
    assert saves.find() is None
    assert "no file of the module stranger" in capsys.readouterr().err


def test_host_that_is_never_proven_is_not_saved(saves: SaveLab) -> None:
    machine = SimpleNamespace(
        domain=FakeDomain(), description=saves.description, token=TOKEN,
        console=SimpleNamespace(path=saves.description.console), folder=saves.folder / TOKEN,
    )  # fmt: skip
    with (
        contextlib.suppress(ArmFailedError),
        saving(cast(StartedVm, machine), saves.spec, RunKeys.make(), saves.hosts, Progress()),
    ):
        raise PANIC
    assert saves.find() is None
    assert not [*saves.folder.glob("cache/hosts/.*")]


def test_devices_of_the_other_kind_are_plugged_in_by_qemu(saves: SaveLab, tmp_path: Path) -> None:
    saves.spec = spec_in(tmp_path, "device.kind=pci-testdev", "device.count=2")
    domain = FakeDomain()
    saves.save(domain)
    assert domain.log[-4:] == ["attachDeviceFlags", "device_add", "device_add", "resume"]


@pytest.mark.parametrize("accel", ["exact", "tcg", "kvm"])
def test_random_state_is_always_renewed_and_the_clock_where_it_is_a_clock(
    accel: Accel, saves: SaveLab, tmp_path: Path
) -> None:
    saves.spec = replace(saves.spec, accel=accel)
    names, seeds = set(), set()
    for _ in range(2):
        saves.save(FakeDomain())
        with tarfile.open(tmp_path / TOKEN / "keys") as tar:
            names |= {*tar.getnames()}
            seed = tar.extractfile("seed")
            assert seed is not None
            seeds.add(seed.read())
            if "time" in tar.getnames():
                now = tar.extractfile("time")
                assert now is not None
                assert float(now.read()) == pytest.approx(time.time(), abs=60)
        if (saved := saves.find()) is not None:
            saves.hosts.remove(saved)
    assert names == {*RunKeys.make().for_host(), "seed", *([] if accel == "exact" else ["time"])}
    assert {len(seed) for seed in seeds} == {64}
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        (f"barometer: may be saved {TOKEN} {BOOT_ID}", True),
        (f"barometer: may be saved {TOKEN} {BOOT_ID}[    3.1] evm: overlay", True),
        (f"barometer: may be saved 000000000000 {BOOT_ID}", False),
        (f"[  1.0] barometer: may be saved {TOKEN} {BOOT_ID}", False),
        (f"barometer: may be saved {TOKEN} {BOOT_ID[:-1]}", False),
    ],
)
def test_mark_of_a_host_that_may_be_saved(line: str, is_one: bool) -> None:
    assert (ready_mark(TOKEN).search(f"first\n{line}\n") is not None) == is_one


@pytest.mark.parametrize(
    ("config", "can"),
    [
        ("CONFIG_HOTPLUG_PCI_PCIE=y\nCONFIG_HOTPLUG_PCI_ACPI=y\n", True),
        ("CONFIG_HOTPLUG_PCI_PCIE=y\n", False), ("CONFIG_HOTPLUG_PCI_ACPI=y\n", False),
        ("CONFIG_HOTPLUG_PCI_PCIE=y\n# CONFIG_HOTPLUG_PCI_ACPI is not set\n", False),
        ("CONFIG_HOTPLUG_PCI_PCIE=m\nCONFIG_HOTPLUG_PCI_ACPI=y\n", False),
        ("# CONFIG_HOTPLUG_PCI_PCIE is not set\n", False), ("", False), (None, False),
        ("CONFIG_X=y\nCONFIG_HOTPLUG_PCI_PCIE=y\nCONFIG_Y=y\nCONFIG_HOTPLUG_PCI_ACPI=y\n", True),
    ],
)  # fmt: skip
def test_kernel_must_be_known_to_find_what_is_plugged_in(
    config: str | None, can: bool, tmp_path: Path
) -> None:
    path = tmp_path / "config"
    if config is not None:
        path.write_text(config)
    kernel = KernelBundle("7.3", tmp_path, tmp_path, None if config is None else path, "d")
    assert can_plug(kernel) == can


WINDOW = "0x0000380000000000 0x000038000fffffff 0x0000000000382201"  # of 256 MiB, of a bridge
BAR = "0x0000380000000000 0x000038000fffffff 0x000000000014220c"
UNPLACED = "0x0000000000000000 0x000000000fffffff 0x000000002014220c"
NONE = "0x0000000000000000 0x0000000000000000 0x0000000000000000"


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ([NONE, BAR, NONE], 1), ([BAR, WINDOW, BAR], 2), ([WINDOW, UNPLACED], 0), ([], 0),
        ([BAR.replace("0fffffff", "07ffffff")], 0),
    ],
)  # fmt: skip
def test_bars_that_have_a_place_are_counted(lines: list[str], count: int) -> None:
    assert restoring.count_bars("".join(f"{line}\n" for line in lines), 256 << 20) == count


def test_devices_are_waited_for_until_all_their_bars_have_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_in(tmp_path, "device.bar=256MiB", "device.count=2")
    texts = [UNPLACED, f"{BAR}\n{UNPLACED}", f"{BAR}\n{WINDOW}\n{BAR}"]
    shell = SimpleNamespace(run=lambda *_, **__: Completed(texts.pop(0), "", 0))
    restoring.wait_for_devices(cast(Shell, shell), spec)
    assert texts == []
    # what is missing then is said by who uses it
    monkeypatch.setattr(restoring, "_PLACED_SECONDS", 0.2)
    shell.run = lambda *_, **__: Completed(BAR, "", 0)
    restoring.wait_for_devices(cast(Shell, shell), spec)


# the pool -------------------------------------------------------------------------------------


class FakeHosts:
    """The saved hosts of a user who has one, or none."""

    def __init__(self, saved: SavedHost | None) -> None:
        self.saved = saved
        self.removed: list[SavedHost] = []

    def find(self, *_: Any) -> SavedHost | None:
        return self.saved

    def remove(self, saved: SavedHost) -> None:
        self.removed.append(saved)


class PoolLab:
    """A pool of hosts whose boots start nothing."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.spec = folder, spec_in(folder)
        self.saved = SavedHost(
            Path("/cache/hosts/5eed"), TOKEN, BOOT_ID, "2026-11-30T10:00:00+00:00",
            self.spec.image.modules, "", {},
        )  # fmt: skip
        self.hosts = FakeHosts(self.saved)
        self.log: list[str] = []
        self.boot_id = BOOT_ID
        self.refusing: dict[str, Exception] = {}
        self.stopped = False
        self.libvirt = SimpleNamespace(stopped=SimpleNamespace(is_set=lambda: self.stopped))
        for name in (
            "restore", "saving", "prepare_host", "mount_own_modules", "wait_for_devices"
        ):  # fmt: skip
            patch.setattr(sharing, name, getattr(self, f"_{name}"))
        patch.setattr(sharing, "running_machine", self._running)
        patch.setattr(sharing, "proven_host", self._proven)

    def _does(self, step: str) -> None:
        self.log.append(step)
        if step in self.refusing:
            raise self.refusing[step]

    @contextlib.contextmanager
    def _running(
        self, spec: BootSpec, token: str, saved: SavedHost | None = None, **_: Any
    ) -> Iterator[Any]:
        folder = self.folder / token
        folder.mkdir()
        (folder / "console.log").write_text(f"{'restored' if saved else 'booted'}\n")
        self._does("start" if saved is None else "start paused")
        yield SimpleNamespace(started=time.monotonic(), token=saved.token if saved else token)
        self.log.append("end")

    def _restore(self, *_: Any) -> None:
        self._does("restore")

    @contextlib.contextmanager
    def _saving(
        self, _machine: Any, _spec: Any, _keys: Any, hosts: Any, _progress: Any
    ) -> Iterator[Callable[[Shell], None]]:
        self._does("plug" if hosts is None else "save")
        yield lambda _shell: self._does("keep")

    @contextlib.contextmanager
    def _proven(self, *_: Any, **__: Any) -> Iterator[tuple[Any, str]]:
        self._does("prove")
        yield SimpleNamespace(shell=None), self.boot_id

    def _mount_own_modules(self, *_: Any) -> None:
        self._does("mount")

    def _wait_for_devices(self, *_: Any) -> None:
        self._does("devices")

    def _prepare_host(self, host: Any, _spec: BootSpec) -> Any:
        self._does("prepare")
        return host

    def trial(
        self, *, saves: bool = True, restores: bool = True, raises: BaseException | None = None,
        **how: Any,
    ) -> TrialWriter:  # fmt: skip
        trial = TrialWriter(self.folder / "trial", facts_of())
        pool = HostPool(
            cast(BenchState, SimpleNamespace(token="0f0f", folder=self.folder)),
            cast(Connection, self.libvirt), cast(SavedHosts, self.hosts),
        )  # fmt: skip
        with pool.boot(
            replace(self.spec, **how), trial=trial, progress=Progress(), shared=False,
            saves=saves, restores=restores,
        ):  # fmt: skip
            if raises is not None:
                raise raises
        return trial


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PoolLab:
    return PoolLab(tmp_path, monkeypatch)


FIRST: dict[str, Any] = {"arm": "candidate", "pair": 1}
BOOTED = ["start", "save", "prove", "keep", "devices", "prepare", "end"]
RESTORED = ["start paused", "restore", "prove", "mount", "devices", "prepare", "end"]


def test_saved_host_is_restored_and_proven_and_that_is_recorded(pool: PoolLab) -> None:
    trial = pool.trial()
    assert pool.log == RESTORED
    record = trial.manifest.host_restored
    assert record is not None
    assert (record.digest, record.booted) == ("5eed", pool.saved.booted)
    assert trial.manifest.boot_id == BOOT_ID
    assert trial.manifest.token == TOKEN
    assert f"barometer.token={TOKEN} " in (trial.manifest.host_cmdline or "")
    assert trial.manifest.host_boot_seconds is trial.manifest.host_session_seconds is None
    assert (trial.host / "console.log").read_text() == "restored\n"
    assert pool.hosts.removed == []


def test_host_of_which_none_was_saved_is_booted_and_saved(pool: PoolLab) -> None:
    pool.hosts.saved = None
    trial = pool.trial()
    assert pool.log == BOOTED
    assert trial.manifest.host_restored is None
    assert trial.manifest.host_boot_seconds is not None


def test_only_what_may_be_restored_is(pool: PoolLab) -> None:
    pool.trial(restores=False)
    assert pool.log == BOOTED
    pool.log.clear()
    (pool.folder / ".trial.partial").rename(pool.folder / "first")
    pool.trial(pluggable=False)
    assert pool.log == ["start", "prove", "prepare", "end"]


def test_host_that_is_not_to_be_saved_is_not(pool: PoolLab) -> None:
    pool.trial(saves=False, restores=False)
    assert pool.log == [BOOTED[0], "plug", *BOOTED[2:]]


@pytest.mark.parametrize(
    ("restore", "fresh", "asked"),
    [("auto", "true", (True, True)), ("never", "true", (False, False)),
     ("auto", "false", (True, False))],
)  # fmt: skip
def test_machine_asks_for_what_the_scenario_says(
    tmp_path: Path, restore: str, fresh: str, asked: tuple[bool, bool]
) -> None:
    chosen = scenario("workload=map", "host.accel=exact", f"host.restore={restore}",
                      f"host.fresh_boots={fresh}")  # fmt: skip
    seen: list[tuple[bool, bool]] = []

    @contextlib.contextmanager
    def boot(*_: Any, saves: bool, restores: bool, **__: Any) -> Iterator[None]:
        seen.append((saves, restores))
        yield

    machine = NestedMachine.of(
        chosen.host, chosen.device, cast(HostPool, SimpleNamespace(boot=boot))
    )
    spec = spec_in(tmp_path)
    machine._kernels = {"candidate": spec.kernel}
    machine._images = {"candidate": spec.image}
    trial = TrialWriter(tmp_path / "trial", facts_of(**FIRST))
    with machine.boot("candidate", (), trial, progress=Progress(), with_libvirt=False):
        pass
    assert seen == [asked]


@pytest.mark.parametrize("step", ["start paused", "restore"])
def test_host_that_cannot_be_restored_is_booted_instead(
    pool: PoolLab, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.refusing[step] = BenchError("QEMU refused", reason=Reason.MONITOR)
    trial = pool.trial()
    assert pool.log[-len(BOOTED) :] == BOOTED
    assert pool.hosts.removed == [pool.saved]
    assert trial.manifest.host_restored is None
    assert trial.manifest.token != TOKEN
    assert f"barometer.token={trial.manifest.token} " in (trial.manifest.host_cmdline or "")
    assert (trial.host / "console.log").read_text() == "booted\n"
    assert "host: not restored, so it is booted: QEMU refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        PANIC,
        BenchError("no answer", reason=Reason.HOST_SILENT),
        EvidenceError("the BAR could not be mapped", reason=Reason.MAP_REFUSED),
    ],
)
@pytest.mark.parametrize("step", ["prove", "mount", "devices", "prepare", "workload"])
def test_what_fails_on_a_restored_host_is_the_benchs_and_is_done_again(
    pool: PoolLab, step: str, error: Exception
) -> None:
    pool.refusing[step] = error
    with pytest.raises(BenchError, match=re.escape(f"on a restored host: {error}")) as caught:
        pool.trial(raises=error if step == "workload" else None)
    reason = caught.value.reason
    assert reason == Reason.RESTORED_HOST
    assert charge(reason, emulated=True).charge == "bench"
    assert fault_of(reason).comes_and_goes
    assert pool.hosts.removed == [pool.saved]


def test_same_failure_on_a_host_that_was_booted_is_its_own(pool: PoolLab) -> None:
    with pytest.raises(ArmFailedError):
        pool.trial(restores=False, raises=PANIC)
    assert pool.hosts.removed == []


def test_interrupt_is_no_reason_against_a_saved_host(pool: PoolLab) -> None:
    with pytest.raises(KeyboardInterrupt):
        pool.trial(raises=KeyboardInterrupt())
    (pool.folder / ".trial.partial").rename(pool.folder / "first")
    pool.stopped = True
    with pytest.raises(ArmFailedError):
        pool.trial(raises=PANIC)
    assert pool.hosts.removed == []


@pytest.mark.parametrize("step", ["start paused", "restore"])
def test_interrupted_restore_is_no_reason_against_a_saved_host(pool: PoolLab, step: str) -> None:
    pool.refusing[step] = BenchError("QEMU is gone", reason=Reason.MONITOR)
    pool.stopped = True
    with pytest.raises(BenchError, match="QEMU is gone"):
        pool.trial()
    assert pool.hosts.removed == []
    assert "start" not in pool.log


def test_restored_host_must_be_in_the_boot_that_was_saved(pool: PoolLab) -> None:
    pool.boot_id = BOOT_ID.replace("58", "59")
    with pytest.raises(BenchError, match=BOOT_ID) as caught:
        pool.trial()
    assert caught.value.reason == Reason.RESTORED_HOST


@pytest.mark.parametrize(
    ("facts", "last_stage", "is_one"),
    [
        (FIRST, "", True), (FIRST | {"arm": "baseline"}, "", True),
        (FIRST | {"pair": 2}, "", False),  # a second host of one boot is no second sample
        (FIRST | {"arm": "control"}, "", False), (FIRST | {"arm": "warm-up"}, "", False),
        (FIRST | {"repeated": ["host-crash"]}, "", False), (FIRST, "host-boot", False),
        (FIRST | {"pair": 0}, "", False),
    ],
)  # fmt: skip
def test_first_attempt_at_an_arms_first_trial_may_be_restored(
    tmp_path: Path, facts: dict[str, Any], last_stage: str, is_one: bool
) -> None:
    trial = TrialWriter(tmp_path / "trial", facts_of(**facts))
    trial.last_stage = last_stage
    assert _is_restorable(trial) == is_one


@pytest.mark.parametrize(
    ("overrides", "is_one"),
    [
        (("workload=map", "host.accel=exact"), True),
        (("workload=map", "host.accel=exact", "host.restore=never"), True),
        (("workload=map", "host.accel=tcg"), False),
        (("host.accel=exact",), False),
    ],
)
def test_devices_are_plugged_in_where_maps_are_counted_exactly(
    tmp_path: Path, overrides: tuple[str, ...], is_one: bool
) -> None:
    (tmp_path / "config").write_text("CONFIG_HOTPLUG_PCI_PCIE=y\nCONFIG_HOTPLUG_PCI_ACPI=y\n")
    chosen = scenario(*overrides)
    machine = NestedMachine.of(chosen.host, chosen.device)
    machine._boots_guests = chosen.workload == "guest-boot"  # as `provide` sets it
    machine.choose_accel()
    spec = spec_in(tmp_path)
    machine._kernels = {"baseline": replace(spec.kernel, config=tmp_path / "config")}
    machine._images = {"baseline": spec.image}
    found = machine.boot_spec("baseline", (), with_libvirt=False)
    assert found.pluggable == is_one
    assert ("barometer.keys=later" in found.cmdline(TOKEN).split()) == is_one


def test_devices_are_plugged_into_both_arms_hosts_or_into_none(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("CONFIG_HOTPLUG_PCI_PCIE=y\nCONFIG_HOTPLUG_PCI_ACPI=y\n")
    chosen = scenario("workload=map", "host.accel=exact")
    machine = NestedMachine.of(chosen.host, chosen.device)
    machine.choose_accel()
    spec = spec_in(tmp_path)
    machine._images = {"baseline": spec.image, "candidate": spec.image}
    can = replace(spec.kernel, config=tmp_path / "config")
    for baseline, candidate, plugged in ((can, can, True), (can, spec.kernel, False)):
        machine._kernels = {"baseline": baseline, "candidate": candidate}
        for arm in ARMS:
            assert machine.boot_spec(arm, (), with_libvirt=False).pluggable == plugged
