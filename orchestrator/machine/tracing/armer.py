"""The one armer of kernel probes. A shell on the machine arms them, marks the trace, and removes
them when its standard input closes, whatever closed it. The machine needs nothing but a POSIX
shell: the program is guests/agents/keeper/tracing.sh, which the keeper has, too, to remove what a
killed shell left."""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.base.bounded import FACTS_BYTES, TRACE_BYTES
from orchestrator.base.errors import BarometerError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.surveys.profile_facts import QemuProcess
from orchestrator.machine.runner.agents import AgentProgram, StayingAgent
from orchestrator.machine.runner.images import GUESTS
from orchestrator.machine.transport.shell import Commands, Dialogue

TRACEFS, PROC = "/sys/kernel/tracing", "/proc"
_ARM_SECONDS = 300.0
_CLEAR_TRIES, _CLEAR_SECONDS = 300, 120.0
_HURRIED_SECONDS = 20.0
"""Longest wait for the removal of probes after an error: the machine may not answer any more."""
_REFUSED_LINES = 50


@dataclass(frozen=True)
class ProbeSpec:
    """Probes to arm, in the terms of the kernel's tracefs."""

    instance: str
    group: str
    """Event group of the probes; nothing else may use it."""
    clock: str
    """Clock of the trace (trace_clock)."""
    buffer_kb: int
    """Ring buffer for each CPU."""
    symbols: tuple[str, ...]
    """Functions that the kernel must have."""
    definitions: tuple[str, ...]
    """Lines for kprobe_events."""
    filters: Mapping[str, str]
    """Event -> its filter."""
    triggers: Mapping[str, str] = field(default_factory=dict)
    """Event -> its histogram, which arms it."""
    enable: tuple[str, ...] = ()
    """Events to switch on."""
    modules: tuple[str, ...] = ()
    """Modules to load first, for their functions."""

    @property
    def folder(self) -> str:
        return f"{TRACEFS}/instances/{self.instance}"

    def histogram(self, event: str) -> str:
        """Return the path of an event's histogram."""
        return f"{self.folder}/events/{event}/hist"


def arming_script(spec: ProbeSpec, tracefs: str, proc: str) -> str:
    """Return a POSIX shell script that arms a specification.

    It prints `armed`; `busy` if its instance exists already; else `refused WHAT` and the kernel's
    own message. Then it reads lines. To `count PID` it answers the number of records, or `gone` if
    there is no such process. It writes any other line to the trace, after the word barometer, and
    answers `marked`. At the end of its input it undoes everything."""
    functions = arming_functions(spec.instance, spec.group, tracefs, proc)
    return f"{functions}begin\n{arming_commands(spec, tracefs)}guard\n"


def arming_commands(spec: ProbeSpec, tracefs: str) -> str:
    """Return the commands of `arming_script` from `begin` to the switch tracing_on."""
    instance = f"{tracefs}/instances/{spec.instance}"
    lines = [
        *([f"modprobe -q -a {' '.join(spec.modules)}\n"] if spec.modules else []),
        f"look_up '{'|'.join(spec.symbols)}'\n",
        *(f"has {name}\n" for name in spec.symbols),
        "make_instance\n",
        _put(f"{instance}/tracing_on", "0"), _put(f"{instance}/trace_clock", spec.clock),
        _put(f"{instance}/buffer_size_kb", str(spec.buffer_kb)),
        _put(f"{tracefs}/error_log", ""),
        *map(_probe, spec.definitions),
        *(_put(f"{instance}/events/{e}/filter", text) for e, text in spec.filters.items()),
        *(_put(f"{instance}/events/{e}/trigger", text) for e, text in spec.triggers.items()),
        *(f"switch_on {event}\n" for event in spec.enable),
    ]  # fmt: skip
    return "".join(lines)


def clearing_script(instance: str, group: str, tracefs: str, proc: str) -> str:
    """Return a script that undoes all that a killed shell can have left; it exits with code 1 if
    that fails. If a shell is alive, it prints its process id, and does nothing."""
    functions = arming_functions(instance, group, tracefs, proc)
    return f'{functions}refuse_alive\nundo\n[ ! -d "$I" ]\n'


def arming_functions(instance: str, group: str, tracefs: str, proc: str) -> str:
    """Return the functions of guests/agents/keeper/tracing.sh, with their variables."""
    folder = shlex.quote(f"{tracefs}/instances/{instance}")
    functions = (GUESTS / "agents/keeper/tracing.sh").read_text()
    places = f"T={shlex.quote(tracefs)}\nP={shlex.quote(proc)}\nI={folder}\nG={group}\n"
    return places + functions


def _put(path: str, text: str) -> str:
    return f"put {shlex.quote(path)} {shlex.quote(text)}\n"


def _probe(definition: str) -> str:
    """Return the line of the script that makes a probe `p:GROUP/EVENT MODULE:FUNCTION ...`."""
    head, place, *rest = definition.split(" ")
    module, _, function = place.rpartition(":")
    words = [module, head, " ".join([function, *rest])]
    return f"probe {' '.join(map(shlex.quote, words))}\n"


def find_functions(shell: Commands, names: Sequence[str]) -> list[str]:
    """Return those of the functions that the running kernel has under their own names. Raises
    BenchError if that is not known."""
    pattern = f" ({'|'.join(names)})([[:space:]]|$)"  # not .constprop, .isra
    listed = shell.run(
        f"grep -oE {shlex.quote(pattern)} {PROC}/kallsyms || [ $? = 1 ]", doing="reading symbols",
        limit=FACTS_BYTES,
    )  # fmt: skip
    return sorted({*names} & {*listed.stdout.split()})


class ArmedProbes:
    """Armed probes, and their trace."""

    def __init__(self, shell: Commands, spec: ProbeSpec, dialogue: Dialogue) -> None:
        self._shell, self._spec, self._dialogue = shell, spec, dialogue

    def mark(self, event: str, detail: object = "") -> None:
        """Write a line in the form of the watch agent (guests/agents/watch.py) to the trace. The
        trace clock gives its time; the time in the line itself is 0. Raises BenchError if the
        connection is lost."""
        text = json.dumps(detail) if detail != "" else ""
        if (answer := self._answer(f"E 0 {event} {text}".rstrip())) != "marked":
            raise self._lost(answer)

    def focus(self, pid: int) -> None:
        """Record only this process from now on, and nothing of other guests."""
        self._shell.run(
            # all threads in one write(2): the return of a map that is under way must be recorded
            f"cd {self._spec.folder} && echo 1 > options/event-fork &&"
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
        """Stop recording. Return trace.txt, clock.txt, stats.txt, profile.txt (hits of each
        probe), and a file hist-EVENT.txt for each histogram."""
        spec = self._spec
        folder = spec.folder

        def read(script: str) -> str:
            return self._shell.run(
                script, timeout=600, doing="reading the trace", limit=TRACE_BYTES
            ).stdout

        own = {_event_of(definition) for definition in spec.definitions}
        hits = read(f"echo 0 > {folder}/tracing_on; cat {TRACEFS}/kprobe_profile")
        files = {
            "trace.txt": read(f"cat {folder}/trace"),
            "clock.txt": read(f"cat {folder}/trace_clock"),
            "stats.txt": read(
                f'cd {folder}/per_cpu && for c in cpu*; do echo "$c"; cat "$c/stats"; done'
            ),
            "profile.txt": "".join(
                line for line in hits.splitlines(keepends=True) if {*line.split()[:1]} & own
            ),
        }
        return files | {
            f"hist-{event.partition('/')[2]}.txt": read(f"cat {spec.histogram(event)}")
            for event in spec.triggers
        }


def _event_of(definition: str) -> str:
    """Return the name of the event in `p:GROUP/EVENT PLACE ...`."""
    return definition.split(" ", maxsplit=1)[0].partition("/")[2]


@contextlib.contextmanager
def armed_probes(shell: Commands, spec: ProbeSpec) -> Iterator[ArmedProbes]:
    """Keep probes armed while the block runs. They are removed after it, at the latest when the
    connection ends.

    Raises BenchError if another tracer is at work, if the kernel refuses a probe (with its own
    reason), and if something cannot be undone."""
    script, is_armed = AgentProgram(("sh", "-c", arming_script(spec, TRACEFS, PROC))), False
    try:
        with StayingAgent(lambda: shell, script) as agent:
            dialogue = agent.dialogue(_ARM_SECONDS)
            _wait_until_armed(shell, spec, dialogue)
            is_armed = True
            yield ArmedProbes(shell, spec, dialogue)
    except BaseException:
        if is_armed:
            with contextlib.suppress(BarometerError):  # the first error comes first
                _wait_until_cleared(shell, spec, within=_HURRIED_SECONDS)
        raise
    _wait_until_cleared(shell, spec)


def _wait_until_armed(shell: Commands, spec: ProbeSpec, dialogue: Dialogue) -> None:
    try:
        first = next(dialogue, "")
    except TimeoutError as exc:
        raise BenchError(
            f"{shell.name}: the tracer did not answer for {_ARM_SECONDS:.0f} s",
            reason=Reason.TRACER_LOST,
        ) from exc
    if first == "busy":
        raise BenchError(
            f"{shell.name}: a tracer is at work already, or was killed: the trace instance"
            f" {spec.instance} is there",
            hint="wait for it; what a killed profile left is cleared by: barometer profile"
            " --clear",
            reason=Reason.PROFILE_BUSY,
        )
    if first != "armed":
        raise BenchError(
            f"{shell.name}: the probes cannot be armed",
            evidence="\n".join([first, *itertools.islice(dialogue, _REFUSED_LINES)]).strip(),
            hint="tracing needs kprobes, which a kernel in lockdown does not allow, and arguments"
            " in return probes (Linux v6.9); a function that the compiler copied under another"
            " name (.constprop, .isra) cannot be traced",
            reason=Reason.TRACER_REFUSED,
        )


def _wait_until_cleared(
    shell: Commands, spec: ProbeSpec, within: float = _CLEAR_SECONDS
) -> None:  # fmt: skip
    """Wait until the shell on the machine has undone everything, as it does at the end of its
    input."""
    removal = shell.run(
        f"tries=0; while [ -d {spec.folder} ] && [ $tries -lt {_CLEAR_TRIES} ]; do"
        f" tries=$((tries + 1)); sleep 0.1; done; [ ! -d {spec.folder} ]",
        check=False, timeout=within,
    )  # fmt: skip
    if removal.code:
        raise BenchError(
            f"{shell.name}: the trace instance {spec.instance} could not be removed",
            hint="barometer profile --clear", reason=Reason.TRACER_LEFT,
        )  # fmt: skip


def clear_probes(shell: Commands, instance: str, group: str) -> None:
    """Undo all that a killed shell can have left. Raises BenchError if that fails, or if the shell
    is alive."""
    script = clearing_script(instance, group, TRACEFS, PROC)
    alive = shell.run(script, doing="clearing what a tracer left").stdout
    if alive:
        raise BenchError(
            f"{shell.name}: a tracer is at work: its shell is process {alive.strip()}",
            hint="wait for its end; nothing was cleared", reason=Reason.PROFILE_BUSY,
        )  # fmt: skip
