"""The timing pass on a host that has nothing but a POSIX shell: `sh` arms the probes, marks the
trace, and undoes all of it when its standard input closes, whatever closed it."""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.base.bounded import TRACE_BYTES
from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.profile_facts import QemuProcess
from orchestrator.formats.units import MIB
from orchestrator.machine.tracing.probes import timing_spec
from orchestrator.machine.transport.shell import Commands, Dialogue

INSTANCE, GROUP = "barometer-profile", "baroprofile"
TRACEFS, PROC = "/sys/kernel/tracing", "/proc"
_PARTS = {
    "pin": "vfio_pin_pages_remote", "imap": "iommu_map", "iun": "iommu_unmap_fast",
    "unpin": "vfio_unpin_pages_remote",
}  # fmt: skip
"""Probes that must be filtered on entry and return, and their functions."""
_SMALL_BAR = 64 * MIB
"""Smallest BAR whose maps are recorded in parts. RAM is mapped in many smaller runs, and a filter
by such a small size would record their parts, too."""
_BUFFER_KB = 1024
_ARM_SECONDS = 300.0
_CLEAR_TRIES = 300
_REFUSED_LINES = 50

_CLEAR = """\
undo() {
    if [ -d "$I" ]; then
        echo 0 > "$I/tracing_on"
        echo 0 > "$I/events/enable"
    fi
    sed -n "s,^[^:]*:\\\\($G/[^ ]*\\\\) .*,-:\\\\1,p" "$T/kprobe_events" |
        while read -r line; do echo "$line" >> "$T/kprobe_events"; done
    tries=0 # last, so that all is gone when the instance is
    while [ -d "$I" ] && ! rmdir "$I" && [ $tries -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
}
"""
_ARM = """\
finish() {
    exec > /dev/null 2>&1 9>&-
    [ -z "$made" ] || undo
}
refuse() {
    echo "refused $1"
    tail -c 600 "$T/error_log"
    exit
}
has() { case "$found " in *" $1 "*) ;; *) refuse "this kernel has no function $1" ;; esac; }
put() { printf '%s\\n' "$2" > "$1" || refuse "$1: $2"; }
probe() {
    module=
    [ -z "$1" ] || ! grep -q "^$1 " "$P/modules" || module="$1:"
    printf '%s\\n' "$2 $module$3" >> "$T/kprobe_events" || refuse "$2 $module$3"
}
switch_on() {
    put "$I/events/$1/enable" 1
    case $(cat "$I/events/$1/enable") in 1*) ;; *) refuse "$1 is off after switching it on" ;; esac
}
made=
trap '' PIPE
trap finish EXIT
trap 'exit 1' HUP INT TERM
[ -w "$T/kprobe_events" ] || refuse "$T/kprobe_events: no such file, or not to be written"
[ ! -d "$I" ] || { echo busy; exit; }
undo # probes without an instance are nobody's
"""
_GUARD = """\
count() { # by what the shell has built in: a process each time would be felt in the boot
    sum=0
    for stats in "$I"/per_cpu/*/stats; do
        read -r _ entries < "$stats"
        sum=$((sum + entries))
    done
    [ -d "$P/$1" ] || sum=gone
    echo "$sum"
}
exec 9> "$I/trace_marker" # also how a profile that is alive is told from what one left
put "$I/tracing_on" 1
echo armed
while read -r line; do
    case $line in
        'count '*) count "${line#count }" ;;
        *)
            printf 'barometer %s\\n' "$line" >&9
            echo marked
            ;;
    esac
done
"""
_REFUSE_ALIVE = """\
for fd in "$P"/[0-9]*/fd/9; do
    [ "$(readlink "$fd")" = "$I/trace_marker" ] || continue
    fd=${fd%/fd/9}
    echo "${fd##*/}"
    exit
done
"""


@dataclass(frozen=True)
class ProbeSpec:
    """Probes to arm, in the terms of the kernel's tracefs."""

    symbols: tuple[str, ...]
    """Functions that the kernel must have."""
    clock: str
    """Of the trace (trace_clock)."""
    instance: str
    group: str
    definitions: tuple[str, ...]
    """Lines for kprobe_events."""
    filters: Mapping[str, str]
    """Event -> its filter."""
    enable: tuple[str, ...]
    """Events to switch on."""


def make_profile_spec(bars: Sequence[int], emulator: str, *, kvm: bool) -> ProbeSpec:
    """Return the probes of `timing_spec` for a boot of the domain whose QEMU is `emulator`.
    `bars`: sizes of its BARs in bytes. The parts of a map are probed for large BARs or, if there
    are none, for the largest BAR."""
    large = sorted({bar for bar in bars if bar >= _SMALL_BAR} or {max(bars)})
    spec = timing_spec(
        large, boot=True, kvm=kvm, emulator=emulator, instance=INSTANCE, group=GROUP
    )
    return ProbeSpec(
        tuple(spec["symbols"]), spec["clock"], spec["instance"], spec["group"],
        tuple(spec["definitions"]), spec["filters"], tuple(spec["enable"]),
    )  # fmt: skip


def can_take_return_arguments(shell: Commands) -> bool:
    """True if return probes know the arguments of their function (Linux v6.9)."""
    events, tried = f"{TRACEFS}/kprobe_events", f"{GROUP}/tried"
    return not shell.run(
        f"echo 'r:{tried} iommu_map size=$arg4:x64' >> {events} && echo '-:{tried}' >> {events}",
        check=False, doing="trying a return probe",
    ).code  # fmt: skip


def leave_out_parts(spec: ProbeSpec) -> ProbeSpec:
    """Return the specification for older kernels. It records how long maps and unmaps take, but
    not their parts: a return probe without arguments cannot tell the parts of a BAR's map from
    those of a map of RAM."""
    lost = {f"{spec.group}/{base}_{side}" for base in _PARTS for side in ("in", "out")}
    definitions = []
    for line in spec.definitions:
        head, place, *values = line.split(" ")
        if head.partition(":")[2] in lost:
            continue
        if head.startswith("r:"):
            values = [value for value in values if "$retval" in value]
        definitions.append(" ".join([head, place, *values]))
    lost_filters = lost | {f"{spec.group}/ioctl_out"}
    return replace(
        spec,
        symbols=tuple(name for name in spec.symbols if name not in _PARTS.values()),
        definitions=tuple(definitions),
        filters={e: text for e, text in spec.filters.items() if e not in lost_filters},
        enable=tuple(event for event in spec.enable if event not in lost),
    )


def arming_script(spec: ProbeSpec, tracefs: str, proc: str) -> str:
    """Return a POSIX shell script that arms a specification (without triggers;
    guests/agents/tracer.py).

    It prints `armed`; `busy` if its instance exists already; else `refused WHAT` and the kernel's
    own message. Then it reads lines. To `count PID` it answers the number of records, or `gone` if
    there is no such process. It writes any other line to the trace, after the word barometer, and
    answers `marked`. At the end of its input it undoes everything.

    It loads the modules that a start of the domain would load, for their symbols."""
    return arming_functions(spec, tracefs, proc) + arming_commands(spec, tracefs) + _GUARD


def arming_functions(spec: ProbeSpec, tracefs: str, proc: str) -> str:
    """Return the places and functions that `arming_commands` needs. From here on the end of the
    shell undoes what is armed."""
    return _places(spec.instance, spec.group, tracefs, proc) + _CLEAR + _ARM


def arming_commands(spec: ProbeSpec, tracefs: str) -> str:
    """Return the commands that arm a specification, up to its switch tracing_on."""
    instance = f"{tracefs}/instances/{spec.instance}"
    lines = [
        "modprobe -q -a vfio-pci vfio_iommu_type1\n",
        f"found=$(grep -oE ' ({'|'.join(spec.symbols)})([[:space:]]|$)' \"$P/kallsyms\" |"
        " tr -s '\\t\\n' ' ')\n",
        *(f"has {name}\n" for name in spec.symbols),
        'mkdir "$I" || refuse "$I cannot be made"\nmade=1\n',
        _put(f"{instance}/tracing_on", "0"), _put(f"{instance}/trace_clock", spec.clock),
        _put(f"{instance}/buffer_size_kb", str(_BUFFER_KB)),
        _put(f"{tracefs}/error_log", ""),
        *map(_probe, spec.definitions),
        *(_put(f"{instance}/events/{e}/filter", text) for e, text in spec.filters.items()),
        *(f"switch_on {event}\n" for event in spec.enable),
    ]  # fmt: skip
    return "".join(lines)


def clearing_script(tracefs: str, proc: str) -> str:
    """Return a script that undoes all that a killed profile can have left; it exits with code 1 if
    that fails. If a profile is alive, it prints the process id of its shell, and does nothing."""
    places = _places(INSTANCE, GROUP, tracefs, proc)
    return places + _REFUSE_ALIVE + _CLEAR + 'undo\n[ ! -d "$I" ]\n'


def _places(instance: str, group: str, tracefs: str, proc: str) -> str:
    folder = shlex.quote(f"{tracefs}/instances/{instance}")
    return f"T={shlex.quote(tracefs)}\nP={shlex.quote(proc)}\nI={folder}\nG={group}\n"


def _put(path: str, text: str) -> str:
    return f"put {shlex.quote(path)} {shlex.quote(text)}\n"


def _probe(definition: str) -> str:
    """Return the line of the script that makes a probe `p:GROUP/EVENT MODULE:FUNCTION ...`. The
    script drops the module if it is built in: the kernel would wait for the module, and the probe
    would never fire."""
    head, place, *rest = definition.split(" ")
    module, _, function = place.rpartition(":")
    words = [module, head, " ".join([function, *rest])]
    return f"probe {' '.join(map(shlex.quote, words))}\n"


class Tracer:
    """Armed probes."""

    def __init__(self, shell: Commands, dialogue: Dialogue) -> None:
        self._shell, self._dialogue = shell, dialogue

    def mark(self, event: str, detail: object = "") -> None:
        """Write a line in the form of the watch agent (guests/agents/watch.py) to the trace. The
        trace clock gives its time; the time in the line itself is 0. Raises BenchError if the
        connection is lost."""
        text = json.dumps(detail) if detail != "" else ""
        if (answer := self._answer(f"E 0 {event} {text}".rstrip())) != "marked":
            raise self._lost(answer)

    def focus(self, pid: int) -> None:
        """Record only this process from now on, and nothing of other guests."""
        folder = f"{TRACEFS}/instances/{INSTANCE}"
        self._shell.run(
            # all threads in one write(2): the return of a map that is under way must be recorded
            f"cd {folder} && echo 1 > options/event-fork &&"
            f" echo $(ls {PROC}/{pid}/task) > set_event_pid",
            check=False, doing="leaving other guests out of the trace",
        )  # fmt: skip

    def records(self, pid: int) -> int | None:
        """Return how many records the trace has until now; None if the process is gone. Raises
        BenchError if the connection is lost."""
        answer = self._answer(f"count {pid}")
        if answer == "gone":
            return None
        if not answer.isdecimal():
            raise self._lost(answer)
        return int(answer)

    def _answer(self, line: str) -> str:
        """Send a line to the shell that holds the probes; return its answer, or why none came."""
        try:
            self._dialogue.say(line)
            return next(self._dialogue, "")
        except OSError as exc:
            return str(exc)

    def _lost(self, answer: str) -> BenchError:
        return BenchError(
            f"{self._shell.name}: the tracer is gone", evidence=answer, reason=Reason.TRACER_LOST
        )

    def process(self, pid: int) -> QemuProcess | None:
        """Read the state of QEMU's process; None if it is gone."""
        answer = self._shell.run(
            f"cd {PROC}/{pid} && grep VmPTE status && echo task $(ls task) && grep vfio maps",
            check=False, doing="reading QEMU's mappings",
        ).stdout  # fmt: skip
        head, _, rest = answer.partition("\n")
        tasks, _, maps = rest.partition("\n")
        if not tasks.startswith("task "):
            return None
        return QemuProcess(
            pid=pid, threads=tuple(int(word) for word in tasks.split()[1:]),
            page_table_bytes=int(head.split()[1]) * 1024, maps=maps,
        )  # fmt: skip

    def files(self) -> dict[str, str]:
        """Stop recording. Return trace.txt, clock.txt, stats.txt and profile.txt, in the form of
        guests/agents/tracer.py."""
        folder = f"{TRACEFS}/instances/{INSTANCE}"

        def read(script: str) -> str:
            return self._shell.run(
                script, timeout=600, doing="reading the trace", limit=TRACE_BYTES
            ).stdout

        return {
            "trace.txt": read(f"echo 0 > {folder}/tracing_on; cat {folder}/trace"),
            "clock.txt": read(f"cat {folder}/trace_clock"),
            "stats.txt": read(
                f'cd {folder}/per_cpu && for c in cpu*; do echo "$c"; cat "$c/stats"; done'
            ),
            "profile.txt": read(f"cat {TRACEFS}/kprobe_profile"),
        }


@contextlib.contextmanager
def armed_profiler(shell: Commands, spec: ProbeSpec) -> Iterator[Tracer]:
    """Keep probes armed while the block runs. They are removed after it, at the latest when the
    connection ends.

    Raises BenchError if another profile is at work, if the kernel refuses a probe (with its own
    reason), and if something cannot be undone."""
    try:
        with contextlib.ExitStack() as after, _running_tracer(shell, spec) as dialogue:
            _wait_until_armed(shell, dialogue)
            after.callback(_wait_until_cleared, shell)
            yield Tracer(shell, dialogue)
    except TimeoutError as exc:
        raise BenchError(
            f"{shell.name}: the tracer did not answer for {_ARM_SECONDS:.0f} s",
            reason=Reason.TRACER_LOST,
        ) from exc


def _running_tracer(
    shell: Commands, spec: ProbeSpec
) -> contextlib.AbstractContextManager[Dialogue]:
    return shell.stream(["sh", "-c", arming_script(spec, TRACEFS, PROC)], timeout=_ARM_SECONDS)


def _wait_until_armed(shell: Commands, dialogue: Dialogue) -> None:
    first = next(dialogue, "")
    if first == "busy":
        raise BenchError(
            f"{shell.name}: a profile is at work already, or was killed: the trace instance"
            f" {INSTANCE} is there",
            hint="wait for it; what a killed one left is cleared by: barometer profile --clear",
            reason=Reason.PROFILE_BUSY,
        )
    if first != "armed":
        raise BenchError(
            f"{shell.name}: the probes cannot be armed",
            evidence="\n".join([first, *itertools.islice(dialogue, _REFUSED_LINES)]).strip(),
            hint="the timing pass needs kprobes, which a kernel in lockdown does not allow; a"
            " function that the compiler copied under another name (.constprop, .isra) cannot be"
            " traced",
            reason=Reason.TRACER_REFUSED,
        )


def _wait_until_cleared(shell: Commands) -> None:
    """Wait until the shell on the host has undone everything, as it does at the end of its
    input."""
    folder = f"{TRACEFS}/instances/{INSTANCE}"
    removal = shell.run(
        f"tries=0; while [ -d {folder} ] && [ $tries -lt {_CLEAR_TRIES} ]; do"
        f" tries=$((tries + 1)); sleep 0.1; done; [ ! -d {folder} ]", check=False,
    )  # fmt: skip
    if removal.code:
        raise BenchError(
            f"{shell.name}: the trace instance {INSTANCE} could not be removed",
            hint="barometer profile --clear", reason=Reason.TRACER_LEFT,
        )  # fmt: skip


def clear_probes(shell: Commands) -> None:
    """Undo all that a killed profile can have left. Raises BenchError if that fails, or if a
    profile is alive."""
    alive = shell.run(clearing_script(TRACEFS, PROC), doing="clearing what a profile left").stdout
    if alive:
        raise BenchError(
            f"{shell.name}: a profile is at work: its shell is process {alive.strip()}",
            hint="wait for its end; nothing was cleared", reason=Reason.PROFILE_BUSY,
        )  # fmt: skip
