"""Machines: one as it is, which is looked at and stays as it is, and the machine of a run, which
boots the host kernels of both arms, whatever kind of machine it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from orchestrator.base.cache import Cache
from orchestrator.base.progress import Progress
from orchestrator.evidence.layout import TrialWriter
from orchestrator.evidence.manifest import HostKindFacts
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.host.device import BoundDevice
from orchestrator.machine.host.host import Host
from orchestrator.machine.runner.accel import Accel
from orchestrator.machine.runner.agents import AgentProgram, run_agent
from orchestrator.machine.transport.shell import Commands, Completed
from orchestrator.machine.vm.hypervisor import library_version
from orchestrator.scenario.machines import Guest
from orchestrator.scenario.vocabulary import ArmName


class AnyMachine(ABC):
    """What `doctor` and `profile` need of a machine: they look at it, and boot no kernel on it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the machine in messages."""

    @property
    @abstractmethod
    def shell(self) -> Commands:
        """Shell on the machine."""

    def known_facts(self) -> dict[str, object]:
        """Return what is known of the machine without asking it, as a checkup reports it."""
        return {}

    def run(self, program: AgentProgram, *arguments: str, **how: Any) -> Completed:
        """Run an agent to its end, as `run_agent` does."""
        return run_agent(self.shell, program, *arguments, **how)


class FoundMachine(AnyMachine):
    """A machine that is there already, behind a shell."""

    def __init__(self, shell: Commands) -> None:
        self._shell = shell

    @property
    def name(self) -> str:
        return self._shell.name

    @property
    def shell(self) -> Commands:
        return self._shell


class ThisMachine(FoundMachine):
    """The machine that barometer runs on."""

    def known_facts(self) -> dict[str, object]:
        return {"libvirt": library_version()}


class Machine(AnyMachine):
    """Provides the hosts of a run, one at a time or several. Its name and its shell are those of
    the machine that carries them: the runner, or the metal host.

    The order of calls is: `survey` and `choose_accel`, before any kernel is built; `provide`, once
    the kernels are there; `install`, once the run's folder is; then `boot` for each trial. How the
    machine is taken and given back is the matter of the context manager that yields it.
    """

    @abstractmethod
    def survey(self) -> Sequence[str]:
        """Examine the machine, and return notes for the user. Raises BenchError if it cannot be
        used, or if it cannot spare the device."""

    @abstractmethod
    def choose_accel(self) -> tuple[Accel, str]:
        """Return the accelerator of the hosts, and the reason for it."""

    @abstractmethod
    def provide(
        self, kernels: Mapping[ArmName, KernelBundle], guest: Guest | None,
        guest_kernel: KernelBundle | None, cache: Cache,
    ) -> None:  # fmt: skip
        """Build, on the runner, what hosts with these kernels need. `guest` and its kernel are
        None if the workload has no guest. Raises ScenarioError for a kernel that cannot run the
        machine, BenchError for other failures."""

    @abstractmethod
    def install(self, cache: Cache) -> None:
        """Put onto the machine what has been provided. Raises BenchError."""

    @abstractmethod
    def boot(
        self, arm: ArmName, words: Sequence[str], trial: TrialWriter, *, progress: Progress,
        with_libvirt: bool,
    ) -> AbstractContextManager[Host]:  # fmt: skip
        """Keep a host booted under the arm's kernel, which is proven to run, while the block runs.
        `words` are added to its command line. `with_libvirt`: the trial boots guests.

        Raises ArmFailedError if the kernel does not come up, BenchError if the bench is to blame.
        """

    @abstractmethod
    def bind_devices(self, host: Host, trial: TrialWriter) -> tuple[BoundDevice, ...]:
        """Bind the devices with a large BAR to vfio-pci. They go back with the host's other
        changes. Raises ArmFailedError if the proven kernel does not place a BAR, BenchError
        otherwise."""

    @abstractmethod
    def trial_facts(self, arm: ArmName) -> HostKindFacts:
        """Return what a trial's manifest says about this kind of machine."""

    @abstractmethod
    def guest_packages(self) -> dict[str, str]:
        """Return the packages of the guest's user space, with their versions."""
