"""The conditions under which trials were made, and what differs between them.

A condition is a name and a text, `host.qemu` and `10.0.13`:

    accel barometer workload
    host.kernel.*               what follows from the host's kernel
    host.arm.*                  its arm's settings besides the kernel: cmdline, parameters, sysfs
    host.* host.packages.NAME   the rest of the host
    guest.* guest.packages.NAME device.* map.*
    runner.*                    the machine that barometer ran on

If a trial did not record a condition, it does not have that condition, and there is no difference.
If it looked for a value and did not find it, the value is `absent`. A difference is planned if it
belongs to the variable. The variable is the arm: its kernel, its settings and, if these differ,
what follows from them (consequences.py). A default that differs between two kernels (that of huge
pages, say) is a difference like any other: both arms could have been set to the same value, and if
they are not, more than the code is compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from orchestrator.analysis.conditions.consequences import (
    infer_from_file,
    infer_from_parameter,
    infer_from_words,
)
from orchestrator.analysis.conditions.kconfig import ConfigChange, diff_configs
from orchestrator.evidence.facts import GuestFacts, HostFacts, MachineFacts
from orchestrator.evidence.manifest import Manifest, ProvenSettings
from orchestrator.formats.abi import MACHINE_TAINTS, TAINTS, parse_selected
from orchestrator.formats.units import format_size

ABSENT = "absent"
NOT_SET = "not set"
KERNEL, ARM = "host.kernel.", "host.arm."
ARM_CMDLINE = f"{ARM}cmdline"
ARM_PARAMETERS, ARM_SYSFS = f"{ARM}parameters.", f"{ARM}sysfs."
_DIGEST = f"{KERNEL}digest"
_SPELLED = (_DIGEST, f"{KERNEL}source")
"""Conditions that say which kernel the scenario names, not what that kernel does."""
_DONE_BY_KERNEL = "host.kernel.taint"
"""A kernel sets this as it runs, perhaps only in some trials, so no trial began under it."""
_LISTED = ("host.packages.", "guest.packages.")
"""Rooms (prefixes of names) that are recorded as a whole: a name of the room that a trial lacks
was absent. host.arm is recorded as a whole, too: a name that a trial lacks there was not set."""
_NOT_OURS = ("barometer.token=", "tsc_early_khz=", "BOOT_IMAGE=", "initrd=")
"""Words of a command line that are left out: the token that proves the kernel, the runner's TSC as
it was measured, and what boot loaders add for each kernel."""

Trial = Mapping[str, str]
"""The conditions of one trial."""
Sides = Mapping[str, Sequence[Trial]]
"""Trials by the name of their side: an arm, or an arm of a run. All trials of a side should have
the same kernel."""


# of one trial --------------------------------------------------------------------------------


def collect_conditions(
    manifest: Manifest, host: HostFacts | None, guest: GuestFacts | None
) -> dict[str, str]:
    """Return the conditions of one trial. A trial that ended early may have no facts of its host
    or its guest."""
    values: dict[str, object] = {
        "accel": manifest.accel, "barometer": manifest.barometer, "workload": manifest.workload,
        **_kernel(manifest, host),
        **_arm(manifest.arm_settings),
        **_host(manifest, host),
        **_guest(manifest, guest),
        "device.kind": manifest.device_kind,
        "device.count": manifest.device_count,
        "device.mmap": manifest.device_mmap,
        "device.bar": format_size(manifest.bar),
        "map.backend": manifest.map_backend,
        "map.thp": manifest.map_thp,
        **_versions("runner", manifest.runner_versions),
    }  # fmt: skip
    if (runner := manifest.runner) is not None:
        values |= _machine("runner", runner)
        values |= {"runner.system": runner.system, "runner.mitigations": _mitigations(runner)}
    return {name: str(value) for name, value in sorted(values.items()) if value is not None}


def _kernel(manifest: Manifest, host: HostFacts | None) -> dict[str, object]:
    """Return all that the choice of the host's kernel decides. It decides the mitigations, too:
    they cannot be set while it runs, and what else they depend on (command line, processor,
    microcode) is compared by itself."""
    planned = manifest.kernel
    values: dict[str, object] = {
        "release": planned.release, "source": planned.source, "digest": planned.digest,
    }  # fmt: skip
    if host is not None:
        values |= {
            "version": host.version,
            "vfio_iommu_type1": _known(host.settings, "vfio_iommu_type1_srcversion"),
            "mitigations": _mitigations(host),
            "taint": _taints(host.settings)[0],
        }
    return {f"host.kernel.{name}": value for name, value in values.items()}


def _arm(settings: ProvenSettings | None) -> dict[str, object]:
    """Return the arm's settings as read back, including those that only the other arm sets. The
    value of a parameter that cannot be read is the one that was requested."""
    if settings is None:
        return {}
    values: dict[str, object] = {ARM_CMDLINE: settings.cmdline.found or None}
    for room, proven in ((ARM_PARAMETERS, settings.parameters), (ARM_SYSFS, settings.sysfs)):
        for name, value in proven.items():
            values[f"{room}{name}"] = value.asked if value.found is None else value.found
    return values


def _arm_words(settings: ProvenSettings | None) -> list[str]:
    """Return the words of the host's command line that its arm adds."""
    if settings is None:
        return []
    words = (settings.cmdline.asked or "").split()
    parameters = settings.parameters.items()
    return words + [f"{name}={v.asked}" for name, v in parameters if v.asked is not None]


def _host(manifest: Manifest, facts: HostFacts | None) -> dict[str, object]:
    values: dict[str, object] = {
        "memory": _size(manifest.host_memory),
        "viommu": manifest.host_viommu,
        "viommu_aw_bits": manifest.host_viommu_aw_bits,
        **_packages(manifest.host_packages),
    }
    of_machine: dict[str, object] = {}
    if facts is not None:
        settings = facts.settings
        parameters = facts.parameters or {
            "vfio_iommu_type1.disable_hugepages": settings.get("vfio_disable_hugepages")
        }
        devices = facts.devices or (facts.device,)
        values |= {
            "cmdline": _cmdline(settings.get("cmdline"), _arm_words(manifest.arm_settings)),
            "lockdown": _known(settings, "lockdown"),
            "firmware": _known(settings, "firmware_version"),
            "taint": _taints(settings)[1],
            "iommu": " ".join(sorted(facts.iommus)) or ABSENT,
            "iommu_group_type": _all({d.group_type for d in devices if d.group_type}),
            **{f"parameters.{name}": value for name, value in parameters.items()},
        }
        of_machine = _machine("host", facts)
    return (
        of_machine
        | {f"host.{name}": value for name, value in values.items()}
        | _versions("host", manifest.host_versions)
    )


def _guest(manifest: Manifest, facts: GuestFacts | None) -> dict[str, object]:
    kernel = manifest.guest_kernel
    values: dict[str, object] = {
        "accel": manifest.guest_accel,
        "cpus": manifest.guest_cpus,
        "phys_bits": manifest.guest_phys_bits,
        "firmware": manifest.guest_firmware,
        "boot": manifest.guest_boot,
        "backing": manifest.guest_backing,
        "viommu": manifest.guest_viommu,
        "backend": manifest.guest_backend,
        "kernel.release": kernel and kernel.release,
        "kernel.digest": kernel and kernel.digest,
        "cmdline": facts and _cmdline(facts.cmdline),
        "memory": _all({format_size(guest.memory) for guest in manifest.guests}),
        **_packages(manifest.guest_packages),
    }
    return {f"guest.{name}": value for name, value in values.items()}


def _machine(room: str, facts: MachineFacts) -> dict[str, object]:
    """Return the conditions of any machine."""
    cpu, looked_at = facts.cpu, facts.looked_at()
    values: dict[str, object] = {
        "cpu": cpu.model,
        "cpu_vendor": cpu.vendor,
        "microcode": cpu.microcode,
        "address_sizes": cpu.address_sizes,
        "pdpe1gb": cpu.pdpe1gb,
        "cpus": facts.cpus,
        "governor": _known(looked_at, "governor"),
        "turbo": _turbo(looked_at),
        "smt": _known(looked_at, "smt"),
        "thp": _known(looked_at, "transparent_hugepage"),
        "thp_defrag": _known(looked_at, "thp_defrag"),
        "thp_shmem": _known(looked_at, "thp_shmem"),
        "clocksource": _known(looked_at, "clocksource"),
    }
    return {f"{room}.{name}": value for name, value in values.items()}


def _versions(room: str, versions: Mapping[str, str] | None) -> dict[str, object]:
    return {f"{room}.{name}": version for name, version in (versions or {}).items()}


def _packages(versions: Mapping[str, str] | None) -> dict[str, object]:
    return {f"packages.{name}": version for name, version in (versions or {}).items()}


def _known(settings: Mapping[str, str | None], name: str) -> str | None:
    """Return a setting: the chosen word of `always [madvise] never`; `absent` if it was looked for
    and not found; None if nobody looked."""
    if name not in settings:
        return None
    value = settings[name]
    return ABSENT if value is None else parse_selected(value)


def _turbo(settings: Mapping[str, str | None]) -> str | None:
    """Return whether the processor may run above its nominal frequency."""
    if settings.get("no_turbo") is not None:
        return "off" if settings["no_turbo"] == "1" else "on"
    if settings.get("boost") is not None:
        return "on" if settings["boost"] == "1" else "off"
    return ABSENT if "boost" in settings else None


def _mitigations(facts: MachineFacts) -> str | None:
    """Return the names of the processor's vulnerabilities that the kernel mitigates. Its words for
    how it does so change from release to release."""
    if facts.vulnerabilities is None:
        return None
    texts = facts.vulnerabilities.items()
    return " ".join(n for n, text in texts if text and "Mitigation" in text) or "none"


def _taints(settings: Mapping[str, str | None]) -> tuple[str | None, str | None]:
    """Return two sets of taint letters: those that the kernel itself causes (its modules, its
    faults), and those that the machine or its user causes."""
    tainted = settings.get("tainted")
    if tainted is None:
        return None, None
    flags = int(tainted)
    letters = {letter for bit, letter in enumerate(TAINTS) if flags >> bit & 1}
    if flags >> len(TAINTS):
        letters.add("?")
    return (
        "".join(sorted(letters - MACHINE_TAINTS)) or "none",
        "".join(sorted(letters & MACHINE_TAINTS)) or "none",
    )


def _cmdline(line: str | None, arms: Sequence[str] = ()) -> str | None:
    """Return the line without _NOT_OURS and without the arm's words. Each of these is removed as
    often as the arm has it. They follow barometer's words, so the last of equal words is
    removed."""
    if line is None:
        return None
    words = [word for word in reversed(line.split()) if not word.startswith(_NOT_OURS)]
    for word in arms:
        if word in words:
            words.remove(word)
    return " ".join(reversed(words))


def _all(values: set[str]) -> str | None:
    return " ".join(sorted(values)) or None


def _size(size: int | None) -> str | None:
    return None if size is None else format_size(size)


# of many -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    name: str
    values: dict[str, tuple[str, ...]]
    """Values of each side's trials, each value once; empty if none recorded it."""
    planned: bool
    """True if it follows from the host's kernel or from its arm's settings and each side had one
    value; or if the kernel sets it as it runs."""
    allowed: bool
    """True if the caller allows it, or if an exact host's numbers do not depend on it."""


@dataclass(frozen=True)
class Conditions:
    common: dict[str, str]
    """Conditions that were recorded on each side and have one value in all trials that recorded
    them. Packages are counted, not listed."""
    differences: tuple[Difference, ...]
    not_recorded: tuple[str, ...]
    """Conditions that one side recorded and another did not."""
    config: tuple[ConfigChange, ...] | None
    """Differences of the two kernels' configurations; None if one is not recorded."""

    @property
    def unplanned(self) -> tuple[Difference, ...]:
        """Conditions that differ and must not."""
        return tuple(d for d in self.differences if not d.planned and not d.allowed)


def compare_conditions(
    sides: Sides, configs: tuple[str | None, str | None] = (None, None), allow: Sequence[str] = ()
) -> Conditions:
    """Compare the conditions of all sides. `configs`: configuration of the first side's kernel and
    of the second's. `allow`: names that may differ, or rooms as `runner.*`."""
    recorded = _recorded(sides)
    common = {
        name: value for name, values in recorded.items()
        if all(values.values()) and (value := _same(values)) is not None
    }  # fmt: skip
    missing = [_folded(name) for name, values in recorded.items() if not all(values.values())]
    old, new = configs
    return Conditions(
        _packages_counted(common),
        find_differences(sides, allow),
        tuple(dict.fromkeys(missing)),
        None if old is None or new is None else diff_configs(old, new),
    )


def is_recorded_in_all(sides: Sides) -> bool:
    """True if each side has a trial that recorded its conditions. If not, they are not
    compared."""
    return all(any(trials) for trials in sides.values())


def find_differences(sides: Sides, allow: Sequence[str] = ()) -> tuple[Difference, ...]:
    """Return every condition with more than one value, on two sides or among the trials of one:
    the arms of a run, a run that was taken up again elsewhere, or two runs. `allow`: as for
    `conditions`."""
    recorded = _recorded(sides)
    exact = _same(recorded.get("accel", {})) == "exact"
    variable = _follow_from_arms(recorded)
    differing = []
    for name, values in recorded.items():
        if _same(values) is None:
            one_each = _one_each(values)
            planned = name == _DONE_BY_KERNEL or (_within(name, variable) and one_each)
            # instruction counts depend on QEMU's version, not on the machine
            any_runner = exact and _within(name, ["runner.*"]) and name != "runner.qemu"
            differing.append(Difference(name, values, planned, any_runner or _within(name, allow)))
    return tuple(differing)


def _follow_from_arms(recorded: Mapping[str, Mapping[str, tuple[str, ...]]]) -> list[str]:
    """Return what may differ because the arms differ in their kernel or their settings: names, and
    rooms as `host.arm.*`."""
    names = [*_SPELLED, f"{ARM}*"]
    if _same(recorded.get(_DIGEST, {})) is None:
        names.append(f"{KERNEL}*")
    for name, values in recorded.items():
        if not name.startswith(ARM) or _same(values) is not None or not _one_each(values):
            continue
        if name == ARM_CMDLINE:
            words = [Counter(value.split()) for of_side in values.values() for value in of_side]
            apart = {word for pair in words for other in words for word in pair - other}
            names += infer_from_words(apart)
        elif name.startswith(ARM_PARAMETERS):
            names += infer_from_parameter(name.removeprefix(ARM_PARAMETERS))
        else:
            names += infer_from_file(name.removeprefix(ARM_SYSFS))
    return names


def _one_each(values: Mapping[str, tuple[str, ...]]) -> bool:
    return all(len(of_side) < 2 for of_side in values.values())


def _recorded(sides: Sides) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the values by name and side, each value once, of the sides that recorded anything."""
    listed = {name for trials in sides.values() for trial in trials for name in trial
              if name.startswith((*_LISTED, ARM))}  # fmt: skip
    whole = {
        side: [_with_absent(trial, listed) for trial in trials]
        for side, trials in sides.items()
        if any(trials)
    }
    names = sorted({name for trials in whole.values() for trial in trials for name in trial})
    return {
        name: {
            side: tuple(dict.fromkeys(trial[name] for trial in trials if name in trial))
            for side, trials in whole.items()
        }
        for name in names
    }


def _with_absent(trial: Trial, listed: Collection[str]) -> Trial:
    """Return the trial with a value (ABSENT or NOT_SET) for each name that other trials list and
    it lacks, in the rooms that it recorded as a whole."""
    rooms = tuple(room for room in _LISTED if any(name.startswith(room) for name in trial))
    lacked = [name for name in listed if name not in trial]
    return {
        **trial,
        **{name: ABSENT for name in lacked if name.startswith(rooms)},
        # a trial that ended before its settings were read back has no command line either
        **{name: NOT_SET for name in lacked if name.startswith(ARM) and "host.cmdline" in trial},
    }


def _same(values: Mapping[str, tuple[str, ...]]) -> str | None:
    """Return the one value that all sides have, or None."""
    distinct = {value for of_side in values.values() for value in of_side}
    return distinct.pop() if len(distinct) == 1 else None


def _within(name: str, patterns: Sequence[str]) -> bool:
    return any(
        name == pattern or (pattern.endswith(".*") and name.startswith(pattern.removesuffix("*")))
        for pattern in patterns
    )


def _folded(name: str) -> str:
    """Return the room of a package, else the name."""
    return next((room.removesuffix(".") for room in _LISTED if name.startswith(room)), name)


def _packages_counted(common: Mapping[str, str]) -> dict[str, str]:
    """Return the conditions with the number of packages in place of each package."""
    counts = Counter(_folded(name) for name in common)
    return {name: common.get(name, str(count)) for name, count in counts.items()}


def conditions_json(checked: Conditions) -> dict[str, object]:
    """Return `conditions` of comparison.json. `config` is null if one is not recorded."""
    return {
        "common": checked.common,
        "differences": [asdict(difference) for difference in checked.differences],
        "not_recorded": list(checked.not_recorded),
        "config": None if checked.config is None else {
            change.symbol: [change.old, change.new] for change in checked.config
        },
    }  # fmt: skip
