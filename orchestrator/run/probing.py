"""Probes of a user's own: count the calls of a kernel function, or trace it."""

from __future__ import annotations

import contextlib
import difflib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from orchestrator.base.bounded import TRACE_BYTES
from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.machine.host.host import Host
from orchestrator.machine.tracing.armer import (
    PROC,
    ProbeSpec,
    armed_probes,
    find_functions,
)
from orchestrator.machine.transport.shell import Commands

_INSTANCE, _GROUP = "barometer", "barotest"
_BUFFER_KB = 8192
_MOST_NEAR = 2000
"""Functions with a word in common that are looked at for near names."""


@dataclass
class RecordedProbes:
    """What probes recorded, once their block has ended."""

    files: dict[str, str] = field(default_factory=dict)
    """As `ArmedProbes.files` returns them."""

    @property
    def trace(self) -> str:
        """The records, a line each, as tracefs prints them."""
        return self.files["trace.txt"]

    def histogram(self, event: str) -> str:
        return self.files[f"hist-{event}.txt"]


@contextlib.contextmanager
def counting_calls(host: Host, function: str) -> Iterator[RecordedProbes]:
    """Count the calls of a function, `NAME` or `MODULE:NAME`, by a histogram of the event `calls`.
    Raises ScenarioError with near names if the running kernel has no such function."""
    with _recording(host, {"calls": function}, {"calls": "hist:keys=common_pid"}) as recorded:
        yield recorded


@contextlib.contextmanager
def tracing_calls(host: Host, probes: Mapping[str, str]) -> Iterator[RecordedProbes]:
    """Trace functions: event -> `FUNCTION ARGUMENTS`, as a line of kprobe_events has them after
    its event; `return FUNCTION ...` at its return. Raises as `counting_calls`."""
    with _recording(host, probes, {}) as recorded:
        yield recorded


@contextlib.contextmanager
def _recording(
    host: Host, probes: Mapping[str, str], triggers: Mapping[str, str]
) -> Iterator[RecordedProbes]:
    places = {event: text.removeprefix("return ") for event, text in probes.items()}
    modules = tuple({p.partition(":")[0] for p in places.values() if ":" in p.split(" ")[0]})
    if modules:
        host.shell.run(["modprobe", "-q", "-a", *modules], check=False)
    functions = tuple(place.split(" ")[0].rpartition(":")[2] for place in places.values())
    for function in functions:
        check_function(host.shell, function)
    spec = ProbeSpec(
        instance=_INSTANCE, group=_GROUP, clock="x86-tsc" if host.accel == "exact" else "mono",
        buffer_kb=_BUFFER_KB, symbols=functions, modules=modules,
        definitions=tuple(
            f"{'r' if probes[event] != place else 'p'}:{_GROUP}/{event} {place}"
            for event, place in places.items()
        ),
        filters={}, triggers={f"{_GROUP}/{event}": text for event, text in triggers.items()},
        enable=tuple(f"{_GROUP}/{event}" for event in places if event not in triggers),
    )  # fmt: skip
    host.change.tracing(spec.instance, spec.group)
    recorded = RecordedProbes()
    with armed_probes(host.shell, spec) as armed:
        yield recorded
        recorded.files.update(armed.files())


def check_function(shell: Commands, function: str) -> None:
    """Raise ScenarioError with near names unless the running kernel has the function. One that the
    compiler has inlined, or copied under another name, cannot be probed."""
    if not function.isidentifier():
        raise ScenarioError(f"{function!r} is no function's name", reason=Reason.SCENARIO)
    if find_functions(shell, (function,)):
        return
    word = max(function.split("_"), key=len)
    listed = shell.run(
        f"grep -oE ' [tTwW] [A-Za-z0-9_]*{shlex.quote(word)}[A-Za-z0-9_]*' {PROC}/kallsyms"
        f" | head -n {_MOST_NEAR}",
        check=False, doing="looking for near names", limit=TRACE_BYTES,
    ).stdout  # fmt: skip
    names = {line.split()[-1] for line in listed.splitlines()}
    near = difflib.get_close_matches(function, sorted(names), 3, 0.5)
    raise ScenarioError(
        f"the running kernel has no function {function} that can be probed"
        + (f"; near: {', '.join(near)}" if near else ""),
        reason=Reason.SCENARIO,
    )
