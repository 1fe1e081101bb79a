"""Profiles of a QEMU that somebody else starts: what a host says of it, and the program that
collects a profile by itself, with nothing but a POSIX shell, tracefs and root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator import __version__
from orchestrator.base.bounded import TRACE_BYTES
from orchestrator.machine.runner.images import GUESTS
from orchestrator.machine.tracing.armer import (
    PROC,
    TRACEFS,
    ProbeSpec,
    arming_commands,
    arming_functions,
)
from orchestrator.machine.tracing.profiler import leave_out_parts, make_profile_spec
from orchestrator.machine.transport.shell import Commands

_QEMUS = ("*qemu*", "*/kvm", "*/cloud-hypervisor")
"""Programs that may be a guest's: QEMU by every name (Proxmox: kvm), and cloud-hypervisor."""
_EXEC = "sched/sched_process_exec"
_ANY_BAR = 1 << 51
"""Size that no BAR has; the program puts the sizes of the machine's BARs in its place."""
_LOG_FOLDER = "/var/log/libvirt/qemu"
_REPORT_SECONDS = 60.0
_LONGEST = 900.0
"""Seconds after which a boot counts as over in any case."""


def _read_functions() -> str:
    return (GUESTS / "agents/report.sh").read_text()


def watch_any_qemu(spec: ProbeSpec) -> ProbeSpec:
    """Return the specification for a QEMU of any name."""
    names = " || ".join(f'filename ~ "{glob}"' for glob in _QEMUS)
    return replace(spec, filters={**spec.filters, _EXEC: names})


def read_host_report(shell: Commands, devices: Sequence[str]) -> str:
    """Return what the host says before a boot, of itself and of the devices."""
    return _report(shell, "report_host", *devices)


def read_after_report(shell: Commands, pid: int | None, ended: str, domain: str | None) -> str:
    """Return what the host says after a boot, of QEMU's process and of libvirt's log."""
    log = [f"{_LOG_FOLDER}/{domain}.log"] if domain else []
    return _report(shell, "report_after", "" if pid is None else str(pid), ended, *log)


def _report(shell: Commands, function: str, *arguments: str) -> str:
    """Run a function of guests/agents/report.sh. What a host does not tell is missing in the
    answer, and then not known."""
    script = f'{_read_functions()}\n{function} "$@"\n'
    return shell.run(
        ["sh", "-c", script, "sh", *arguments], check=False, timeout=_REPORT_SECONDS,
        limit=TRACE_BYTES, doing="reading what the host says",
    ).stdout  # fmt: skip


def list_bar_devices(shell: Commands) -> list[str]:
    """Return the devices of the host that may be a guest's."""
    return _report(shell, "list_devices").split()


def list_qemus(shell: Commands) -> list[str]:
    """Return the process ids of the QEMUs that have VFIO open."""
    return _report(shell, "list_qemus").split()


def find_qemu(shell: Commands, pattern: str, known: Sequence[str]) -> int | None:
    """Return the process id of a QEMU that has VFIO open and is none of `known`; None if there is
    none yet. `pattern`: shell pattern of its command line."""
    found = _report(shell, "find_qemu", pattern, *known).split()
    return int(found[0]) if found and found[0].isdecimal() else None


def has_failed_start(shell: Commands, trace: str) -> bool:
    """True if a QEMU ended after one of its maps was refused, as the trace in this file shows."""
    return _report(shell, "find_failed", trace).strip() != ""


def count_refused(shell: Commands) -> int:
    """Return how often the kernel's log says that VFIO was refused a device as a whole."""
    count = _report(shell, "count_refused").strip()
    return int(count) if count.isdecimal() else 0


def collecting_script(
    until: float, longest: float = _LONGEST, *, tracefs: str = TRACEFS, proc: str = PROC
) -> str:
    """Return a POSIX shell program that arms the probes, waits for the next QEMU that opens VFIO,
    records its boot and packs what it collected. It needs root and tracefs, writes nothing but the
    archive, and undoes everything at its end, whatever ended it.

    `until`: the boot is over after so many seconds without a record. `longest`: after so many
    seconds in any case.
    """
    spec = watch_any_qemu(make_profile_spec([_ANY_BAR], "*", kvm=True))
    whole, short = _arm(spec, tracefs), _arm(leave_out_parts(spec), tracefs)
    return "".join(
        [
            _HEAD.format(version=__version__, until=f"{until:g}", longest=f"{longest:g}"),
            _read_functions().removeprefix("#!/bin/sh\n"),
            arming_functions(spec.instance, spec.group, tracefs, proc), _MAIN_FUNCTIONS,
            f"arm_whole() {{\n{whole}}}\narm_short() {{\n{short}}}\n", _MAIN,
        ]
    )  # fmt: skip


def _arm(spec: ProbeSpec, tracefs: str) -> str:
    """Return the commands that arm a specification: KVM's events where there are any, and the
    filters with the sizes of the machine's BARs."""
    lines = []
    for line in arming_commands(spec, tracefs).splitlines():
        if f"{hex(_ANY_BAR)}" in line or f"== {_ANY_BAR // 4096}" in line:
            path = line.split()[1]
            line = f'put {path} "${{{_name_filter(line)}}}"'  # noqa: PLW2901
        if "/events/kvm/" in line or line.startswith("switch_on kvm/"):
            line = f'[ ! -d "$T/events/kvm" ] || {line}'  # noqa: PLW2901
        lines.append(line)
    return "\n".join(lines) + "\n"


def _name_filter(line: str) -> str:
    return "of_pages" if "npage ==" in line else "of_size"


_HEAD = """\
#!/bin/sh
# barometer {version}: record the next start of a virtual machine with a passed-through device.
#
#   sh collect.sh [PATTERN]     as root; PATTERN: a part of the command line of its QEMU
#
# Run it, then start the virtual machine. It records when VFIO maps and unmaps for that machine,
# and what the host says of itself and of its devices, for up to {longest} s, and packs that into
# one archive in the current folder: barometer-profile-*.tar.gz. Show it with
#
#   barometer profile --from ARCHIVE
#
# Nothing is installed. The probes are removed at the end, also after Ctrl-C.
set -u
UNTIL={until}
LONGEST={longest}
NAME=${{1-}}
[ "$(id -u)" = 0 ] || {{ echo "this needs root" >&2; exit 1; }}
"""
_MAIN_FUNCTIONS = """\
leave() {
    [ -z "${W-}" ] || rm -rf "$W"
    finish
}
list_sizes() { # sizes of the BARs of these devices that are large
    for address in "$@"; do
        lines=0
        while read -r first last flags && [ $lines -lt 6 ]; do
            lines=$((lines + 1))
            size=$((last - first + 1))
            [ $((flags & 0x200)) -eq 0 ] || [ $size -lt 67108864 ] || echo $size
        done < "$SYS/bus/pci/devices/$address/resource"
    done | sort -un
}
"""
_MAIN = f"""\
begin
trap leave EXIT
W=$(mktemp -d) || exit 1
devices=$(list_devices)
of_size='' of_pages=''
# shellcheck disable=SC2086 # one word a device
for size in $(list_sizes $devices); do
    hex=$(printf '0x%x' "$size")
    of_size="${{of_size:+$of_size || }}size == $hex"
    of_pages="${{of_pages:+$of_pages || }}npage == $((size / 4096))"
done
[ -n "$of_size" ] || refuse "no device has a BAR of 64 MiB or more"
# shellcheck disable=SC2086
report_host $devices > "$W/host.txt" 2> /dev/null
parts=0
if echo "r:$G/tried iommu_map size=\\$arg4:x64" >> "$T/kprobe_events" 2> /dev/null; then
    parts=1
    echo "-:$G/tried" >> "$T/kprobe_events"
fi
{{
    section tracing
    echo "parts=$parts"
    [ ! -d "$T/events/kvm" ] || echo kvm=1
    ! grep -qw vfio_pci_mmap_huge_fault "$P/kallsyms" || echo huge_fault=1
    section collected
    echo "barometer={__version__} until=$UNTIL"
}} >> "$W/host.txt"
known=$(list_qemus) refused=$(count_refused)
has_failed_start() {{
    [ -n "$(find_failed "$I/trace")" ] || [ "$(count_refused)" -gt "$refused" ]
}}
if [ $parts = 1 ]; then arm_whole; else arm_short; fi
put "$I/tracing_on" 1
echo "armed: start the virtual machine now" >&2
pid='' ended=limit
while [ -z "$pid" ] && [ $ended = limit ]; do
    sleep 1
    # shellcheck disable=SC2086
    pid=$(find_qemu "$NAME" $known)
    [ -n "$pid" ] || ! has_failed_start || ended=start-failed
done
if [ -n "$pid" ]; then
    echo "QEMU is process $pid; waiting for the end of its boot" >&2
    echo 1 > "$I/options/event-fork"
    # shellcheck disable=SC2005,SC2012,SC2046 # all threads in one write(2)
    echo $(ls "$P/$pid/task") > "$I/set_event_pid"
fi
before=$(count self) quiet=0 passed=0
while [ $ended = limit ] && [ $passed -lt "$LONGEST" ]; do
    sleep 1
    passed=$((passed + 1)) now=$(count self)
    [ -d "$P/$pid" ] || {{ ended=domain-ended; break; }}
    if [ "$now" = "$before" ]; then quiet=$((quiet + 1)); else quiet=0; fi
    before=$now
    [ $quiet -lt "$UNTIL" ] || {{ ended=quiet; break; }}
done
[ $ended != domain-ended ] || ! has_failed_start || ended=start-failed
echo 0 > "$I/tracing_on"
report_after "$pid" "$ended" > "$W/after.txt" 2> /dev/null
cat "$I/trace" > "$W/trace.txt"
cat "$I/trace_clock" > "$W/clock.txt"
for at in "$I"/per_cpu/cpu*; do
    echo "${{at##*/}}"
    cat "$at/stats"
done > "$W/stats.txt"
cat "$T/kprobe_profile" > "$W/profile.txt"
archive=barometer-profile-$(uname -n)-$(date +%Y%m%d-%H%M%S).tar.gz
tar -C "$W" -cf - host.txt after.txt trace.txt clock.txt stats.txt profile.txt | gzip > "$archive"
echo "$archive"
"""
