"""The nested kind of machine: its hosts are VMs of the runner, one for each trial, or one that
consecutive trials share. What a trial changes on a shared host is put back when the trial ends.
The next trial gets the host only if its state is then the same as right after the boot."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError, BenchError, key_named
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import TrialWriter
from orchestrator.evidence.manifest import HostKindFacts
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.guest.guest import GUEST_SERIAL, guest_cmdline
from orchestrator.machine.guest.guestdisk import GuestDisk, grub_config, guest_disk
from orchestrator.machine.host.changes import RememberedChanges, put_back_changes
from orchestrator.machine.host.device import BoundDevice, bind_emulated
from orchestrator.machine.host.host import Host
from orchestrator.machine.host.machine import Machine, ThisMachine
from orchestrator.machine.host.modules import prove_modules
from orchestrator.machine.nested.nested import (
    BootSpec,
    describe_domain,
    machine_folder,
    prepare_host,
    prove_kernel,
    proven_host,
    running_machine,
    save_machine,
)
from orchestrator.machine.nested.restoring import (
    RestoreError,
    blaming_restore,
    can_plug,
    mount_own_modules,
    restore,
    saving,
    wait_for_devices,
)
from orchestrator.machine.nested.saved import SavedHost, SavedHosts
from orchestrator.machine.runner import images
from orchestrator.machine.runner.accel import Accel, choose_accel
from orchestrator.machine.runner.images import HostImage, PayloadImage
from orchestrator.machine.runner.state import BenchState
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.machine.transport.shell import Shell
from orchestrator.machine.vm.domain import Disk
from orchestrator.machine.vm.hypervisor import Connection
from orchestrator.scenario.machines import Device, EmulatedDevice, Guest, HostSpec, NestedHost
from orchestrator.scenario.vocabulary import ARMS, ArmName

_SETTLE_SECONDS = 10.0
"""Time for things on the host to end by themselves: a server's side of a connection, or an agent
whose input was closed."""
_MOST, _LONGEST = 20, 200
"""Limits of the list of changes left on a host, in a manifest: number of lines, and characters in
each."""


@dataclass
class HostBoot:
    """One boot of a nested host, its kernel proven."""

    spec: BootSpec
    token: str
    boot_id: str
    seconds: float
    """Seconds from the start of its QEMU until its kernel was proven."""
    host: Host
    saved: SavedHost | None
    """Saved host that it was restored from; None if it was booted."""
    state: dict[str, str]
    """State of a shared host right after its boot, as guests/agents/sharing.py reports it."""


@contextmanager
def booted_host(
    spec: BootSpec,
    token: str,
    *,
    state: BenchState,
    libvirt: Connection,
    trial: TrialWriter,
    progress: Progress,
    shared: bool,
    hosts: SavedHosts | None = None,
    saved: SavedHost | None = None,
) -> Iterator[HostBoot]:
    """Boot the host of a specification, or restore the saved one, and keep it ready for work while
    the block runs. A host that is booted is saved among `hosts`, if it can be. The proven boot id
    and release are recorded in the trial. Raises as `proven_host` and `prepare_host`, and
    RestoreError."""
    keys = RunKeys.make()
    with contextlib.ExitStack() as stack:
        keep: Callable[[Shell], None] = lambda _shell: None  # noqa: E731
        try:
            machine = stack.enter_context(
                running_machine(spec, token, keys=keys, state=state, libvirt=libvirt, saved=saved)
            )
            if saved is not None:
                restore(machine, spec, keys, saved)
        except BenchError as exc:
            if saved is None:
                raise
            raise RestoreError(exc.message, evidence=exc.evidence, reason=exc.reason) from exc
        with contextlib.ExitStack() as proving:
            if spec.pluggable and saved is None:
                keep = proving.enter_context(saving(machine, spec, keys, hosts, progress))
            host, boot_id = stack.enter_context(
                proven_host(machine, spec.kernel, keys=keys, progress=progress)
            )
            keep(host.shell)
        boot = HostBoot(spec, token, boot_id, time.monotonic() - machine.started, host, saved, {})
        _record(trial, boot, shared=shared)
        if saved is not None:
            _prove_boot(boot, saved)
            mount_own_modules(host.shell, spec, saved)
        if spec.pluggable:
            wait_for_devices(host.shell, spec)
        boot.host = prepare_host(host, spec)
        if shared:
            boot.state = put_back_changes(host.shell, host.payload, ())[1]
        yield boot


def _prove_boot(boot: HostBoot, saved: SavedHost) -> None:
    """Raise BenchError if the host runs in another boot than the one that was saved."""
    if boot.boot_id != saved.boot_id:
        raise BenchError(
            f"the restored host is in boot {boot.boot_id}; saved was {saved.boot_id}",
            reason=Reason.WRONG_HOST,
        )


def _record(trial: TrialWriter, boot: HostBoot, *, shared: bool) -> None:
    """Record a boot in the trial. The time that it took is a measurement (`host_boot_seconds`)
    only if no other trial shares the boot."""
    seconds = round(boot.seconds, 3)
    trial.record(boot_id=boot.boot_id, release=boot.spec.kernel.release)
    if boot.saved is not None:
        facts = {"digest": boot.saved.digest, "booted": boot.saved.booted, "seconds": seconds}
        trial.record(host_restored=facts)
    elif shared:
        trial.record(host_session_seconds=seconds)
    else:
        trial.record(host_boot_seconds=seconds)


class HostPool:
    """Boots nested hosts for the trials of a run. A host that trials share is kept until
    `close`."""

    def __init__(
        self, state: BenchState, libvirt: Connection, saved: SavedHosts | None = None
    ) -> None:
        """`saved`: where hosts are saved, and restored from; None if none are."""
        self._state, self._libvirt, self._saved = state, libvirt, saved
        self._kept: HostBoot | None = None
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        """End the host that is kept."""
        self._kept = None
        self._stack.close()

    @contextmanager
    def boot(
        self,
        spec: BootSpec,
        *,
        trial: TrialWriter,
        progress: Progress,
        shared: bool,
        saves: bool = False,
        restores: bool = False,
    ) -> Iterator[Host]:
        """Provide a host for one trial while the block runs. A `shared` host is booted only if no
        host is kept that is alike and in the same state as right after its boot. `saves`: a host
        that boots is saved. `restores`: it does not boot if such a host was saved; what then fails
        in the block, or here, is charged to the bench. The host's console, its domain and QEMU's
        log up to the trial's end are evidence of the trial. Raises as `booted_host`."""
        boot = self._take(spec, progress) if shared else None
        token = boot.token if boot else uuid.uuid4().hex[:12]
        with contextlib.ExitStack() as stack:
            stack.callback(save_machine, self._state, token, trial.host)
            trial.record(token=token, host_cmdline=spec.cmdline(token))
            if restores:
                boot = self._restore(spec, token, stack, trial, progress)
            if boot is None:
                owner = self._stack if shared else stack
                boot = owner.enter_context(
                    booted_host(
                        spec, token, state=self._state, libvirt=self._libvirt, trial=trial,
                        progress=progress, shared=shared, hosts=self._saved if saves else None,
                    )
                )  # fmt: skip
            elif boot.saved is None:
                prove_kernel(boot.host.shell, token, spec.kernel)
                prove_modules(boot.host.shell, spec.kernel)
                _record(trial, boot, shared=True)
                # the reports of earlier trials are on its console, too
                trial.record(reports_before=len(boot.host.kernel.reports()))
            if shared:
                self._kept = boot
                yield stack.enter_context(self._lent(boot, trial, progress))
            else:
                yield boot.host

    def _restore(
        self, spec: BootSpec, token: str, stack: contextlib.ExitStack, trial: TrialWriter,
        progress: Progress,
    ) -> HostBoot | None:  # fmt: skip
        """Restore a saved host that is alike. Return None if there is none, or if it cannot be
        restored; it is then removed."""
        if self._saved is None or not spec.pluggable:
            return None
        saved = self._saved.find(describe_domain(spec, token, self._state), spec.kernel)
        if saved is None:
            return None
        trial.record(token=saved.token, host_cmdline=spec.cmdline(saved.token))
        with contextlib.ExitStack() as restoring:
            restoring.enter_context(
                blaming_restore(saved, self._saved, self._libvirt.stopped.is_set)
            )
            try:
                boot = restoring.enter_context(
                    booted_host(
                        spec, token, state=self._state, libvirt=self._libvirt, trial=trial,
                        progress=progress, shared=False, saved=saved,
                    )
                )  # fmt: skip
            except RestoreError as exc:
                if self._libvirt.stopped.is_set():  # an interrupt ended it
                    raise
                self._saved.remove(saved)
                progress.note(f"host: not restored, so it is booted: {exc}")
                trial.record(token=token, host_cmdline=spec.cmdline(token))
                shutil.rmtree(machine_folder(self._state, token), ignore_errors=True)
                return None
            stack.push(restoring.pop_all())
        return boot

    def _take(self, spec: BootSpec, progress: Progress) -> HostBoot | None:
        """Return the kept host if it can be used for `spec`; else end it and return None."""
        boot = self._kept
        if boot is not None and spec.is_alike(boot.spec):
            if not (differences := put_back(boot)):
                return boot
            progress.note(f"host: not as it was, so it is booted again: {differences[0]}")
        self.close()
        return None

    @contextmanager
    def _lent(self, boot: HostBoot, trial: TrialWriter, progress: Progress) -> Iterator[Host]:
        """Lend the host to one trial while the block runs; end it if the trial left anything."""
        change = RememberedChanges(boot.host.shell, boot.host.payload)
        try:
            yield replace(boot.host, change=change)
        except BarometerError:
            raise
        except BaseException:  # an interrupt or a defect, after which nothing was put back
            self.close()
            raise
        finally:
            if self._kept is boot and (differences := put_back(boot, change.made)):
                self.close()
                trial.record(host_left=differences)
                progress.note(f"host: not as it was after the trial: {differences[0]}")


def put_back(boot: HostBoot, changes: Sequence[tuple[str, dict[str, Any]]] = ()) -> list[str]:
    """Undo the changes. Return what then differs from the state right after the boot, or the
    reason why that is not known. Never raises, because the caller can end the host instead."""
    host = boot.host
    try:
        host.check()
        failed, state = put_back_changes(host.shell, host.payload, changes)
        end = time.monotonic() + _SETTLE_SECONDS
        while state != boot.state and not failed and time.monotonic() < end:
            time.sleep(0.2)
            _, state = put_back_changes(host.shell, host.payload, ())
    except BarometerError as exc:
        return [exc.message[:_LONGEST]]
    names = sorted(boot.state.keys() | state.keys())
    differing = [
        f"{name}: {boot.state.get(name, 'missing')} -> {state.get(name, 'missing')}"
        for name in names
        if boot.state.get(name) != state.get(name)
    ]
    return [line[:_LONGEST] for line in [*failed, *differing][:_MOST]]


class NestedMachine(Machine):
    """The runner, with hosts that are its VMs."""

    name = LocalMachine.name
    shell = LocalMachine()

    def __init__(
        self, host: NestedHost, device: EmulatedDevice, pool: HostPool | None = None
    ) -> None:
        """`pool`: where the hosts boot; None if they are only built."""
        self._spec, self._device, self._pool = host, device, pool
        self._accel: Accel = "tcg"
        self._kernels: Mapping[ArmName, KernelBundle] = {}
        self._images: dict[ArmName, HostImage] = {}
        self._payload = PayloadImage(Path(), {})
        self._guest_disk: GuestDisk | None = None
        """Disk that the guest boots from; None if its kernel is in the payload."""
        self._boots_guests = False

    @classmethod
    def of(cls, host: HostSpec, device: Device, pool: HostPool | None = None) -> Self:
        """Return the machine of a scenario's nested host, with its device."""
        assert host.kind == "nested"
        assert device.kind != "hostdev"  # the scenario's own rule
        return cls(host, device, pool)

    def known_facts(self) -> dict[str, object]:
        return ThisMachine(self.shell).known_facts()

    def survey(self) -> Sequence[str]:
        return ()

    def choose_accel(self) -> tuple[Accel, str]:
        self._accel, reason = choose_accel(self._spec.accel)
        return self._accel, reason

    def provide(
        self, kernels: Mapping[ArmName, KernelBundle], guest: Guest | None,
        guest_kernel: KernelBundle | None, cache: Cache,
    ) -> None:  # fmt: skip
        self._boots_guests = guest_kernel is not None
        if guest is not None and guest_kernel is not None and guest.boot == "disk":
            self._guest_disk = _build_guest_disk(guest, guest_kernel, cache)
        self._kernels = kernels
        self._images = {
            arm: images.host_image(kernel, self._spec.suite, cache)
            for arm, kernel in kernels.items()
        }
        self._payload = images.payload_image(None if self._guest_disk else guest_kernel, cache)

    def install(self, cache: Cache) -> None:
        """Do nothing: the hosts get all of it as disks."""

    @contextmanager
    def boot(
        self, arm: ArmName, words: Sequence[str], trial: TrialWriter, *, progress: Progress,
        with_libvirt: bool,
    ) -> Iterator[Host]:  # fmt: skip
        assert self._pool is not None
        spec = self.boot_spec(arm, words, with_libvirt=with_libvirt)
        shared, saves = not self._spec.fresh_boots, self._spec.restore == "auto"
        with self._pool.boot(
            spec, trial=trial, progress=progress, shared=shared, saves=saves,
            restores=saves and not shared and _is_restorable(trial),
        ) as host:  # fmt: skip
            yield host

    def boot_spec(self, arm: ArmName, words: Sequence[str], *, with_libvirt: bool) -> BootSpec:
        return BootSpec(
            arm, self._spec, self._device, tuple(words), self._kernels[arm], self._images[arm],
            self.disks(), self._accel,
            # a shared host is the same for all trials of a workload, whatever their passes
            with_libvirt=with_libvirt or (self._boots_guests and not self._spec.fresh_boots),
            pluggable=self._plugs_devices(),
        )  # fmt: skip

    def _plugs_devices(self) -> bool:
        """True if devices are plugged into running hosts, so that these can be saved and restored.
        It is the same for all hosts of a run, whether or not they are restored: where a BAR is
        placed, a page fault in it may cost a hundred instructions more."""
        counts_maps = self._accel == "exact" and not self._boots_guests
        return counts_maps and all(can_plug(kernel) for kernel in self._kernels.values())

    def disks(self) -> tuple[Disk, ...]:
        """Return the disks that a host gets besides its own."""
        more = [Disk(self._guest_disk.path, GUEST_SERIAL)] if self._guest_disk else []
        return (Disk(self._payload.disk, "payload"), *more)

    def bind_devices(
        self, host: Host, trial: TrialWriter  # noqa: ARG002
    ) -> tuple[BoundDevice, ...]:  # fmt: skip
        return bind_emulated(host, self._device)

    def trial_facts(self, arm: ArmName) -> HostKindFacts:
        return {
            "host_memory": self._spec.memory, "host_viommu": self._spec.viommu,
            "host_viommu_aw_bits": self._spec.viommu_aw_bits,
            "host_packages": self._images[arm].packages,
        }  # fmt: skip

    def guest_packages(self) -> dict[str, str]:
        return self._guest_disk.packages if self._guest_disk else self._payload.packages


def _is_restorable(trial: TrialWriter) -> bool:
    """True for the first attempt at an arm's first trial. Any further trial of the arm boots,
    because a second host that is restored from the same boot would be no second sample. What
    failed is attempted again on a host that boots, and so is the other arm beside it."""
    facts = trial.manifest
    is_first = facts.pair == 1 and facts.arm in ARMS
    return is_first and not facts.repeated and not trial.last_stage


def _build_guest_disk(guest: Guest, kernel: KernelBundle, cache: Cache) -> GuestDisk:
    cmdline = guest_cmdline(guest)
    with key_named("guest.cmdline"):
        grub_config(kernel.release, cmdline)
    with key_named("guest.kernel"):
        return guest_disk(kernel, cmdline, cache)
