"""Does anything on this machine distort or prevent measuring? Findings, from evidence alone."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.doctor.abilities import ExaminedMachine, parse_number
from orchestrator.analysis.doctor.finding import BOTH, METAL, Finding, Needs, Status, Use
from orchestrator.evidence.surveys.checkup_facts import CountedMap, NoCountedMap
from orchestrator.formats.abi import LEAVES, PAGE

_THP = "/sys/kernel/mm/transparent_hugepage/enabled"
_CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
_CPU = "/sys/devices/system/cpu"
_TRACING = "/sys/kernel/tracing"
PROFILED = (
    "vfio_iommu_type1_ioctl", "vfio_unmap_unpin", "vfio_pci_zap_and_down_write_memory_lock",
)  # fmt: skip
"""Functions without which no boot can be profiled; the parts of a map may be missing."""
_SERIES = '"vfio: Improve DMA mapping performance for huge pfnmaps" (v6.15)'


def check_series(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    """Yield a finding: does the kernel have the patch series? The lookups of a map decide if one
    was made, else the kernel's types (BTF), never its version."""
    release, probe, lookups = machine.facts.release, machine.facts.probe, machine.lookups
    has, how, evidence = machine.has_series, "judged by its types", _quote_types(machine)
    if isinstance(probe, CountedMap) and lookups is not None:
        pages = probe.bytes // PAGE
        has, how = lookups < pages, "counted"
        evidence = (f"one map of {pages} pages of {probe.address}: {lookups} lookups",)
    elif probe is not None:
        why = probe.why if isinstance(probe, NoCountedMap) else "the kernel did not count"
        evidence = (*evidence, f"no map was counted: {why}")
    if has is None:
        yield Finding(
            "series", "note",
            f"it is not known if {release} has {_SERIES}"
            + (": its core has its part, but the module vfio_iommu_type1 is not loaded"
               if machine.has_pfnmaps else ""),
            evidence or ("/sys/kernel/btf/vmlinux: no such file",),
            "modprobe vfio_iommu_type1 and run doctor again, or use --probe with a device on"
            " vfio-pci",
        )  # fmt: skip
    elif has:
        yield Finding("series", "ok", f"{release} has {_SERIES} ({how}): it makes one lookup for"
                      " each leaf", evidence)  # fmt: skip
    else:
        older = "" if machine.has_pfnmaps or how == "counted" else " and no huge pfnmaps (v6.12)"
        yield Finding(
            "series", "warning",
            f"{release} does not have {_SERIES}{older} ({how}): it makes one lookup for each"
            " 4 KiB page",
            evidence, "use v6.15 or later, or a distribution's kernel with the series",
        )  # fmt: skip


def _quote_types(machine: ExaminedMachine) -> tuple[str, ...]:
    if (types := machine.facts.types) is None:
        return ()
    members = "; ".join(types.members or ["not there"])
    parameters = ", ".join(name for name, _ in types.parameters or ())
    texts = (f"struct follow_pfnmap_args: {members}", f"vaddr_get_pfns({parameters})")
    return tuple(f"{path}: {text}" for path, text in zip(types.source, texts, strict=False))


def check_huge_pages(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    policy = machine.chosen(_THP)
    evidence = (machine.quote(_THP),)
    if policy is None:
        yield Finding(
            "thp", "warning", "no transparent huge pages: BARs are mapped by 4 KiB pages",
            evidence, "a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        )  # fmt: skip
    elif policy == "always":
        yield Finding("thp", "ok", "transparent huge pages: always", evidence)
    else:
        # __thp_vma_allowable_orders() of mm/huge_memory.c; the kernel's types do not show what it
        # does
        yield Finding(
            "thp", "warning",
            f"transparent huge pages: {policy}. Some kernels (v6.12's first) apply that to BARs,"
            " and then map them by 4 KiB pages",
            evidence, "put transparent_hugepage=always on the machine's own command line or into"
            " host.cmdline; a value written to that file lasts until the next boot",
        )  # fmt: skip


def check_gigantic_pages(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    has = "pdpe1gb" in machine.flags
    evidence = ["/proc/cpuinfo: flags " + ("with" if has else "without") + " pdpe1gb"]
    if not has:
        yield Finding(
            "1gib-pages", "warning", "the processor shows no pages of 1 GiB", tuple(evidence),
            "give the VM a CPU model with pdpe1gb, such as host-passthrough" if machine.is_guest
            else "none: the hardware lacks them",
        )  # fmt: skip
    for name, folder in (("1G", "1048576kB"), ("2M", "2048kB")):
        if needs.backing != (backing := f"hugetlb-{name}iB"):
            continue
        path = f"/sys/kernel/mm/hugepages/hugepages-{folder}/free_hugepages"
        size = LEAVES[f"{name}iB"]
        needed = -(-needs.guest_memory // size)
        free = parse_number(machine.file(path)) or 0
        if free < needed:
            # A note only: each trial reserves its pages under the kernel under test, and may find
            # enough.
            yield Finding(
                "hugepages", "note", f"{free} free pages for guest.backing = {backing}: each trial"
                f" sets {needed} aside, if its kernel finds them", (machine.quote(path),),
                "if a trial ends with no-huge-pages: host.cmdline ="
                f' "hugepagesz={name} hugepages={needed}"',
            )  # fmt: skip
    if has:
        yield Finding("1gib-pages", "ok", "the processor has pages of 1 GiB", tuple(evidence))


def check_tracing(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on probes in the machine's own kernel. A run traces the kernels under test,
    and checks their probes itself."""
    status: Status = "warning" if needs.traced else "note"
    if machine.lockdown == "confidentiality":
        return  # such a kernel takes no probes; the finding `lockdown` has the remedy
    events = f"{_TRACING}/kprobe_events"
    if machine.access(events):
        yield Finding("tracing", "ok", "the kernel takes probes", (f"{events}: writable",))
    elif not machine.is_root:
        yield Finding("tracing", "note", "only root can see if the kernel takes probes",
                      (f"{events}: not readable as {machine.facts.user}",),
                      "run barometer doctor as root")  # fmt: skip
    elif _TRACING not in machine.tracefs:
        where = " ".join(machine.tracefs)
        yield Finding("tracing", status,
                      f"tracefs is not mounted at {_TRACING}: the kernel cannot be traced",
                      (f"/proc/self/mounts: {f'tracefs at {where}' if where else 'no tracefs'}",),
                      f"mount -t tracefs nodev {_TRACING}, and a line for it in /etc/fstab; if"
                      " the kernel has no tracefs: a kernel with CONFIG_KPROBE_EVENTS",
                      )  # fmt: skip
    else:
        yield Finding("tracing", status,
                      "the running kernel has no probes",
                      (f"{events}: no such file",),
                      "a kernel with CONFIG_KPROBE_EVENTS")  # fmt: skip


def check_profiling(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    """Yield a finding: can `barometer profile` record a guest's boot under the machine's own
    kernel?"""
    events = f"{_TRACING}/kprobe_events"
    lost = [name for name in PROFILED if machine.facts.symbols.get(name, "") is None]
    evidence = (f"{events}: {'writable' if machine.access(events) else 'not writable'}",)
    if machine.lockdown == "confidentiality":
        why, fix = "a kernel under confidentiality takes no probes", "turn Secure Boot off"
    elif not machine.is_root:
        why, fix = f"{machine.facts.user} is not root", "as root: barometer doctor"
    elif not machine.access(events):
        why, fix = "the kernel takes no probes", "see tracing"
    elif lost and not machine.unread:
        why, fix = f"the kernel has no {', '.join(lost)}", "see symbols; modprobe vfio-pci first"
    else:
        yield Finding("profiling", "ok", "a guest's boot can be profiled here", evidence)
        return
    yield Finding(
        "profiling", "note", f"no guest's boot can be profiled here: {why}", evidence, fix
    )


def check_symbols(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on the functions that are traced. A function that the compiler renamed
    (.isra, .constprop) is missing."""
    places = machine.facts.symbols
    if not places or not needs.traced:
        return
    lost = [name for name, place in places.items() if place is None]
    if not lost:
        yield Finding("symbols", "ok",
                      f"the running kernel has all {len(places)} functions that are traced",
                      (", ".join(dict.fromkeys(filter(None, places.values()))),))  # fmt: skip
        return
    unread = machine.unread
    yield Finding(
        "symbols", "note" if unread else "warning",
        f"functions that are traced are {'not seen' if unread else 'missing'} in the running"
        " kernel: " + ", ".join(sorted(lost)),
        unread or ("/proc/kallsyms and the modules have no such names",),
        "modprobe -a vfio-pci vfio_iommu_type1, and run doctor again" if unread
        else "use the pass plain: timing and counts are refused on such a kernel",
    )  # fmt: skip


def check_trace_clock(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    current = machine.file(_CLOCK)
    if current is None or not _timed(machine, needs):
        return
    if current == "tsc":
        yield Finding("clocksource", "ok", "tsc", (machine.quote(_CLOCK),), uses=BOTH)
    else:
        offered = "/sys/devices/system/clocksource/clocksource0/available_clocksource"
        yield Finding(
            "clocksource", "warning" if current in ("hpet", "acpi_pm") else "note",
            f"the clock is {current}, not the TSC: each reading of it is slower",
            (machine.quote(_CLOCK), machine.quote(offered)),
            "dmesg | grep -i tsc says why; add tsc=reliable if you know that the TSC is", BOTH,
        )  # fmt: skip


def check_governor(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    if not _timed(machine, needs):
        return
    uses: tuple[Use, ...] = BOTH
    path = f"{_CPU}/cpu0/cpufreq/scaling_governor"
    governors = machine.governors
    others = [path for path, name in governors.items() if name != "performance"]
    if not governors:
        yield Finding("governor", "note" if not machine.is_guest else "ok",
                      "the kernel does not set the processor's frequency", (machine.quote(path),),
                      "" if machine.is_guest else "set it in the firmware's setup",
                      uses)  # fmt: skip
    elif not others:
        yield Finding("governor", "ok", "performance, on every CPU", (machine.quote(path),),
                      uses=uses)  # fmt: skip
    else:
        yield Finding(
            "governor", "warning",
            f"{', '.join(sorted({*governors.values()}))}: times move with the load",
            (f"{machine.quote(others[0])}; likewise {len(others)} of {len(governors)} CPUs",),
            _lasting(needs, f"echo performance | tee {_CPU}/cpu*/cpufreq/scaling_governor",
                     'host.cmdline = "cpufreq.default_governor=performance" (v5.9)'),
            uses,
        )  # fmt: skip
    for name, on in (("intel_pstate/no_turbo", "0"), ("cpufreq/boost", "1")):
        if machine.file(f"{_CPU}/{name}") == on:
            yield Finding(
                "turbo", "note", "the processor runs above its nominal frequency while it is cool",
                (machine.quote(f"{_CPU}/{name}"),),
                "for times that repeat better: "
                + _lasting(needs, f"echo {1 - int(on)} > {_CPU}/{name}",
                           f'sysfs."{_CPU}/{name}" = {1 - int(on)} in both arms'), uses,
            )  # fmt: skip


def _lasting(needs: Needs, now: str, scenarios: str) -> str:
    """Return the remedy that lasts long enough. `now` lasts until the next boot, so it is too
    short for a run on a metal host, which boots."""
    if "metal" not in needs.uses:
        return now
    return scenarios if needs.uses == METAL else f"{now}; for a metal host: {scenarios}"


def _timed(machine: ExaminedMachine, needs: Needs) -> bool:
    """True if durations are measured in this machine's own seconds, not in those of an
    emulator."""
    return "metal" in needs.uses or machine.has_kvm
