"""A made-up metal host: the machine of the keeper's tests with the real keeper on it, over a fake
SSH connection. A test decides how its boots end."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from keeper import verbs
from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason, find_reason
from orchestrator.evidence.layout import TrialWriter
from orchestrator.kernels.image.bundle import KernelBundle, release_in
from orchestrator.machine.metal.boots import Boots
from orchestrator.machine.metal.leasing import recover_machine
from orchestrator.machine.metal.metal import MetalMachine, leased_machine
from orchestrator.machine.transport.remote import Endpoint, Link
from orchestrator.machine.transport.shell import (
    A_DAY,
    Completed,
    ConnectionLostError,
    Dialogue,
    Shell,
)
from orchestrator.scenario.machines import HostDevice, MetalHost
from orchestrator.scenario.vocabulary import ArmName
from tests.unit.agents.keeper.machines import RELEASE, THP, VERSION, Machine
from tests.unit.hosts import HostShell
from tests.unit.kernels.fakes import folder_kernel
from tests.unit.manifests import facts_of

SECONDS = 20.0
OLD, NEW = "6.12.1-old", "7.3.4-new"
ENDPOINT = Endpoint("gpu1", None, "gpu1.lab", 22, "root", is_behind=False)
DEVICE = HostDevice.model_validate({"kind": "hostdev", "pick": "largest-bar", "bar": "1GiB"})
CPUINFO = "model name : Xeon\nflags : fpu vmx sse\n"
PROGRAMS = {
    "df": """
        echo 'Filesystem 1024-blocks Used Available Capacity Mounted on'
        echo "/dev/vda1 1 1 $(cat "$ROOT/room" 2> /dev/null || echo 9999999) 1% /" """,
    "nproc": "echo 8",
    "dpkg-query": 'cat "$ROOT/packages" 2> /dev/null',
    "mkinitramfs": 'cat "$ROOT/lib/modules/$3/modules.order" - > "$2" < "$ROOT/etc/machine-id"',
    # another /lib/modules, until the namespace ends
    "mount": """
        echo "mount $*" >> "$ROOT/log"
        case $1 in
        -t) mv "$ROOT/lib/modules" "$ROOT/lib/hidden"; mkdir "$ROOT/lib/modules" ;;
        --bind) [ ! -e "$ROOT/lib/hidden" ] || { rmdir "$3" && ln -s "$2" "$3"; } ;;
        esac""",
    "unshare": """
        shift 3
        "$@"
        code=$?
        rm -r "$ROOT/lib/modules" && mv "$ROOT/lib/hidden" "$ROOT/lib/modules"
        exit $code""",
}
Outcome = Literal["up", "own", "gone", "no-kexec", "same", "other-release"]
"""End of a boot: as requested; with the default kernel, after a panic; never, until the power is
cycled; with a kernel without kexec; without a reboot; with another kernel than the staged one."""


def programs(root: Path) -> Path:
    """Write the programs that a shell on the machine finds first, and return their folder."""
    folder = root / "programs"
    folder.mkdir(parents=True)
    for name, script in PROGRAMS.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\nPATH=$ROOT/programs:/usr/bin:/bin\n{script}\n")
        path.chmod(0o755)
    return folder


class Wire(HostShell):
    """A connection that ends with the boot that it was made in."""

    def __init__(self, machine: StandIn) -> None:
        super().__init__(machine.made.root)
        self._machine = machine
        self._boot = machine.made.text("/proc/sys/kernel/random/boot_id")
        self.ran = machine.ran

    def alive(self) -> bool:
        made = self._machine.made
        return self in self._machine.wires and self._boot == made.text(
            "/proc/sys/kernel/random/boot_id"
        )

    def run(self, argv: Sequence[str] | str, *, stdin: bytes = b"", **how: Any) -> Completed:
        if not self.alive():
            raise ConnectionLostError("the SSH connection was lost", reason=Reason.HOST_SSH_LOST)
        if argv[0] == "python3" and argv[2] == "-c":
            return self.keeps(json.loads(stdin[int(argv[-1]) :]))
        return super().run(argv, stdin=stdin, **how)

    def keeps(self, request: dict[str, Any]) -> Completed:
        return self._machine.keeps(request)

    def drop(self) -> None:
        self._machine.wires.remove(self)

    @contextlib.contextmanager
    def stream(
        self, argv: Sequence[str], timeout: float, in_all: float = A_DAY
    ) -> Iterator[Dialogue]:
        if argv[-1] == "stay":
            yield cast(Dialogue, StayingKeeper(self))
            return
        self.ran.append(" ".join(argv))
        if argv[0] == "dmesg":
            yield cast(Dialogue, iter(["[    0.000000] Linux version", "[    1.5] up"]))
            return
        with super().stream(argv, timeout) as lines:
            yield lines


class StayingKeeper:
    """The keeper at the end of a connection, as long as that lasts."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._answers: list[str] = []

    def send(self, program: bytes) -> None:
        assert program.startswith(b"PK")

    def say(self, line: str) -> None:
        if self._wire.alive():
            self._answers.append(self._wire.keeps(json.loads(line)).stdout)

    def __next__(self) -> str:
        if not self._answers:
            raise StopIteration
        return self._answers.pop()


class FakeLink(Link):
    def __init__(self, machine: StandIn) -> None:
        self._machine = machine
        self._shell: Wire | None = None

    def shell(self) -> Shell:
        if self._shell is None or not self._shell.alive():
            self._shell = self._machine.connect()
        return self._shell

    def close(self) -> None:
        self._shell = None


class StandIn:
    def __init__(self, made: Machine) -> None:
        self.made = made
        programs(made.root)
        self.ran: list[str] = []
        """Commands other than the keeper's."""
        self.asked: list[str] = []
        """Verbs for the keeper, with the way of a boot and the kind of a putback."""
        self.cmdline = ""
        """Command line of the last requested boot."""
        self.coming: list[Outcome] = []
        """Ends of the next boots; all later ones end as requested."""
        self.refusing: list[str] = []
        """Reasons why the next logins fail."""
        self.before: dict[str, Callable[[], object]] = {}
        """Verb of the keeper -> a function to call before it."""
        self.is_off = False
        self.default = (RELEASE, VERSION)
        """Kernel that a restart boots."""
        self.wires: list[Wire] = []
        made.file("/etc/machine-id", "5e1f\n")
        made.file(f"/boot/initrd.img-{self.release}", "its own initramfs")
        made.file("/proc/cpuinfo", CPUINFO)

    @property
    def release(self) -> str:
        return self.made.text("/proc/sys/kernel/osrelease").strip()

    @property
    def booted(self) -> list[str]:
        """Return the ways of all boots, in order."""
        return [said.removeprefix("boot ") for said in self.asked if said.startswith("boot ")]

    def link(self, endpoint: Endpoint = ENDPOINT, *, patience: float = 0) -> FakeLink:
        return FakeLink(self)

    def connect(self) -> Wire:
        if self.refusing:
            raise BenchError("gpu1: not now", reason=find_reason(self.refusing.pop(0)))
        if self.is_off:
            raise BenchError("gpu1: no SSH server answers", reason=Reason.HOST_NO_SSH)
        self.wires.append(Wire(self))
        return self.wires[-1]

    def cut(self) -> None:
        """Lose every connection."""
        self.wires.clear()

    def keeps(self, request: dict[str, Any]) -> Completed:
        verb = request["verb"]
        words = [verb, *(str(request[key]) for key in ("how",) if key in request)]
        if request.get("volatile"):
            words.append("volatile")
        if verb != "renew":
            self.asked.append(" ".join(words))
        if happens := self.before.pop(" ".join(words), None):
            happens()
        answer = verbs.answer(request)
        if verb == "boot" and "refused" not in answer:
            self.cmdline = request["cmdline"]
            self.leaves(request)
        return Completed(json.dumps(answer), "", 0)

    def leaves(self, request: dict[str, Any]) -> None:
        outcome = self.coming.pop(0) if self.coming else "up"
        if outcome == "gone":
            self.is_off = True
        if outcome == "same":
            release, cmdline = self.release, self.made.text("/proc/cmdline")
        else:
            release, cmdline = self._kernel(request), f"{request['cmdline']}\n"
        self.power_on()
        if outcome in ("own", "gone") or (request["how"] == "reboot" and outcome != "same"):
            return
        self.made.boots(f"{release}-no" if outcome == "other-release" else release)
        self.made.file("/proc/cmdline", cmdline)
        if outcome == "no-kexec":
            (self.made.root / "sys/kernel/kexec_loaded").unlink()

    def power_on(self) -> None:
        """Boot the default kernel. Nobody reaches the machine until it runs."""
        was_off, self.is_off = self.is_off, True
        self.cut()
        self.made.power_on()
        release, version = self.default
        self.made.boots(release)
        self.made.file("/proc/sys/kernel/version", f"{version}\n")
        self.made.file("/proc/cpuinfo", CPUINFO)
        self.is_off = was_off

    def power_cycled(self) -> None:
        self.is_off = False
        self.power_on()

    def _kernel(self, request: dict[str, Any]) -> str:
        path = self.made.root / request["kernel"][1:]
        if "barometer" in request["kernel"]:
            return release_in(path)
        return request["kernel"].rpartition("vmlinuz-")[2] or self.release

    def state(self) -> dict[str, tuple[int, bytes]]:
        return self.made.all()


class Lab:
    """A runner with a machine."""

    def __init__(
        self, machine: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch,
        said: pytest.CaptureFixture[str], cache: Cache,
    ) -> None:  # fmt: skip
        self.machine, self._monkeypatch, self._said = machine, monkeypatch, said
        self.scratch = folder / "scratch"
        self._folder = folder
        self._cache = cache
        self.kernels = {
            "baseline": bundle(folder / "old", OLD), "candidate": bundle(folder / "new", NEW),
        }  # fmt: skip
        self._trials = 0
        self.cycled: list[list[str]] = []
        """Commands that cycled the machine's power."""
        self.power_helps = True

    @contextmanager
    def held(self, spec: MetalHost | None = None) -> Iterator[MetalMachine]:
        """Hold the lease of a machine that is not changed yet."""
        with leased_machine(
            spec or metal_spec(), DEVICE, "a run", self.scratch, Progress()
        ) as machine:
            yield machine

    @contextmanager
    def leased(
        self, spec: MetalHost | None = None, *, staged: bool = True
    ) -> Iterator[MetalMachine]:
        with self.held(spec) as machine:
            machine.begin_changes()
            if staged:
                kernels = cast(Any, self.kernels)
                machine.stage(kernels, {"agents/x.py": b"pass\n"}, self._cache)
            yield machine

    def run(self, does: Callable[[MetalMachine], object], spec: MetalHost | None = None) -> None:
        with self.leased(spec) as machine:
            does(machine)

    def trial(self) -> TrialWriter:
        self._trials += 1
        return TrialWriter(self._folder / f"trial-{self._trials}", facts_of())

    def boot(self, machine: MetalMachine, arm: ArmName, *words: str) -> TrialWriter:
        """Run a trial that does nothing."""
        trial = self.trial()
        with machine.boot(arm, words, trial):
            pass
        return trial

    def recover(self, spec: MetalHost | None = None, **asked: bool) -> bool:
        return recover_machine(spec or metal_spec(), self.scratch, Progress(), **asked)

    def cycle(self, argv: list[str], **_: Any) -> None:
        self.cycled.append(argv)
        if self.power_helps:
            self.machine.power_cycled()

    def killed(self) -> None:
        """End the runner as SIGKILL does, while the baseline runs with a changed setting."""
        with self._monkeypatch.context() as patched:
            patched.setattr(Boots, "put_back", lambda self: None)
            with self.leased() as machine, machine.boot("baseline", [], self.trial()):
                changed(machine)
        self.runner_has_ended()
        self.machine.asked.clear()
        self.said()

    def runner_has_ended(self) -> None:
        """Mark the runner that holds the lease as ended."""
        left = self.machine.made.done("status")["leases"]
        tokens = [lease["token"] for lease in left]
        self._monkeypatch.setattr(
            "orchestrator.machine.metal.keeper.has_ended", lambda holder: holder["token"] in tokens
        )

    def put_back_steps(self) -> list[str]:
        wanted = ("putback", "boot", "kernel_restored", "release")
        return [said for said in self.machine.asked if said.startswith(wanted)]

    def said(self) -> str:
        return self._said.readouterr().err


def changed(machine: MetalMachine) -> None:
    machine.change.write(THP, "always")


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def wait_for(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def metal_spec(**more: Any) -> MetalHost:
    """Return a metal host with deadlines that no user may set."""
    spec = MetalHost(kind="metal", address="gpu1")
    return spec.model_copy(update={"deadline": 0.3, **more})


def bundle(folder: Path, release: str, **more: Any) -> KernelBundle:
    folder_kernel(folder, release)
    modules = folder / "lib/modules" / release
    names = ("vfio/pci/vfio-pci", "vfio/vfio_iommu_type1", "nvme/host/nvme", "net/igb")
    lines = [f"kernel/drivers/{name}.ko:\n" for name in names]
    (modules / "modules.dep").write_text("".join(["kernel/fs/ext4.ko:\n", *lines]))
    facts = {"config": None, "digest": f"digest of {folder.name}", **more}
    return KernelBundle(release, folder / "vmlinuz", modules, **facts)


def lives(pid: int) -> bool:
    """True if a process lives. A zombie does not: init decides when it reaps one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
