"""A real device of a metal host: choose it, check that the machine can spare it, bind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.base.errors import ArmFailedError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import TrialWriter, write_json
from orchestrator.evidence.surveys.pci_survey import User, is_lasting_claim
from orchestrator.formats.units import MIB, format_size
from orchestrator.machine.host.changes import VFIO
from orchestrator.machine.host.device import BoundDevice, find_bar
from orchestrator.machine.host.host import Host
from orchestrator.machine.host.pci import Function, Survey
from orchestrator.machine.runner.agents import run_agent, sent_agent
from orchestrator.machine.transport.answers import parsing
from orchestrator.machine.transport.shell import Commands
from orchestrator.scenario.machines import HostDevice

_MANAGED = (None, "pcieport", "pci-stub", VFIO)
"""Drivers of functions that may stay in the IOMMU group of a guest's device, because these drivers
do not use the kernel's DMA (driver_managed_dma in drivers/pci/pcie/portdrv.c, pci-stub.c,
drivers/vfio/pci/vfio_pci.c). None: no driver."""
_LIVES_ON = {"network": "own-network", "disk": "own-disk", "display": "console",
             "console": "console"}  # fmt: skip
"""Kind of a function's user -> reason to refuse the function."""
_AMD = "0x1022"
_INTEL_OPTION = " an Intel machine may need intel_iommu=on, too, and on its own command line:"
_ELSEWHERE = "choose a device that the machine does not need"
_PLACED_BY = "is `Above 4G decoding` on in the firmware? What does dmesg say of the address?"


@dataclass(frozen=True)
class Refusal:
    reason: str
    text: str
    """The finding, its place, and the remedy."""


def survey_devices(shell: Commands) -> Survey:
    """Survey the machine's PCI devices. Raises BenchError if that fails."""
    answer = run_agent(shell, sent_agent("survey"), doing="surveying the PCI devices")
    with parsing("the survey of the PCI devices", answer.stdout):
        return Survey.parse(answer.stdout)


def choose_function(device: HostDevice, survey: Survey) -> Function:
    """Return the function that the scenario selects and that the machine can spare.

    Raises BenchError if there is none or more than one, if it is refused, or if it has no BAR of
    the requested size.
    """
    function = _find_selected(device, survey)
    _check_spared(survey, function)
    if device.bar not in (bar.size for bar in function.bars.values()):
        raise BenchError(
            f"{function} has no BAR of {format_size(device.bar)}, which is device.bar",
            evidence="\n".join([*_list_bars(function), *_list_functions(survey)]),
            hint="; ".join(_list_growable(function)),
            reason=Reason.DEVICE_BAR,
        )
    return function


def _check_spared(survey: Survey, function: Function) -> None:
    if refusals := find_refusals(survey, function.address):
        raise BenchError(
            f"{function} cannot be given to a guest",
            evidence="\n".join(f"{refusal.reason}: {refusal.text}" for refusal in refusals),
            reason=Reason.DEVICE_REFUSED,
        )


def _find_selected(device: HostDevice, survey: Survey) -> Function:
    functions = list(survey.functions.values())
    if device.address is not None:
        selector, matching = device.address, [f for f in functions if f.address == device.address]
    elif device.id is not None:
        selector, matching = device.id, [f for f in functions if f.id == device.id]
    else:
        free = [f for f in functions if f.largest_bar and not find_refusals(survey, f.address)]
        largest = max((f.largest_bar for f in free), default=0)
        selector, matching = (
            "that can be given to a guest",
            [f for f in free if f.largest_bar == largest],
        )
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise BenchError(
            f"the machine has {len(matching)} devices {device.id or 'with the largest BAR'}",
            evidence="\n".join(map(str, matching)),
            hint=f'choose one: device.address = "{matching[0].address}"',
            reason=Reason.DEVICE_AMBIGUOUS,
        )
    raise BenchError(
        f"the machine has no device {selector}",
        evidence="\n".join(_list_functions(survey))
        or "no PCI function has a memory BAR of 1MiB or more",
        reason=Reason.DEVICE_MISSING,
    )


def _list_functions(survey: Survey) -> list[str]:
    """List the functions with a BAR of 1 MiB or more, the largest first. A function that is
    refused has the first reason for it."""
    large = [f for f in survey.functions.values() if f.largest_bar >= MIB]
    return [
        f"{f}"
        + (f": refused, {why[0].reason}" if (why := find_refusals(survey, f.address)) else "")
        for f in sorted(large, key=lambda f: (-f.largest_bar, f.address))
    ]


def _list_bars(function: Function) -> list[str]:
    return [f"BAR {index}: {bar}" for index, bar in function.bars.items()]


def list_notes(survey: Survey, function: Function) -> tuple[str, ...]:
    """Return what the user should know about the function, apart from reasons to refuse it."""
    notes = _list_growable(function)
    if not function.facts.reset and not function.facts.reset_method:
        notes.append(
            f"{function.address} has no way to be reset ({function.sysfs}/reset_method):"
            " the next guest finds it as the last one left it"
        )
    if survey.unread:
        notes.append(
            f"{survey.unread} processes could not be asked what they have open: not root there?"
        )
    return tuple(notes)


def _list_growable(function: Function) -> list[str]:
    return [
        f"BAR {index} of {function.address} has {format_size(function.bars[index].size)} and can"
        f" have {format_size(max(sizes))} (Resizable BAR, {function.sysfs}/resource{index}_resize)"
        for index, sizes in function.resizable.items()
        if index in function.bars and max(sizes, default=0) > function.bars[index].size
    ]


# -- refusals -------------------------------------------------------------------------------


def find_refusals(survey: Survey, address: str) -> tuple[Refusal, ...]:
    """Return why the machine cannot spare the function; empty if it can."""
    function = survey.functions[address]
    if function.is_bridge:
        text = f"{function} is a bridge (class {function.facts.class_code}): {_ELSEWHERE}"
        return (Refusal("bridge", text),)
    if function.facts.answers is False:
        return (_gone(function),)
    if function.group is None:
        return (_no_group(survey, function), *_of_the_machine(survey, [function]))
    return (
        *_of_the_machine(survey, survey.members(function)),
        *_reserved(survey, function),
        *_siblings(survey, function),
        *_use(survey, find_own_functions(survey, function)),
        *_claimed(function),
        *_unplaced(function),
    )


def find_own_functions(survey: Survey, function: Function) -> list[Function]:
    """Return the functions of the group that belong to the same device, such as a graphics card
    and its sound. The function itself is among them. For a virtual function, return only that
    function."""
    virtual = function.facts.physfn is not None
    return [
        member
        for member in survey.members(function)
        if member == function
        or (
            not virtual
            and member.facts.physfn is None
            and member.slot == function.slot
            and not member.is_bridge
        )
    ]


def _no_group(survey: Survey, function: Function) -> Refusal:
    if survey.iommus:
        text = f"none of the IOMMUs ({', '.join(survey.iommus)}) is in front of it: {_ELSEWHERE}"
    else:
        text = (
            "no IOMMU is on (/sys/class/iommu is empty): enable"
            f" {'AMD-Vi' if _is_amd(survey) else 'VT-d or AMD-Vi'} in the firmware;"
            + _INTEL_OPTION * (not _is_amd(survey))
            + " it is judged under the machine's own kernel, which host.cmdline is not for"
        )
    return Refusal("no-iommu-group", f"{function.sysfs}/iommu_group is missing, and {text}")


def _is_amd(survey: Survey) -> bool:
    """True if a host bridge of the machine is AMD's."""
    return any(
        function.facts.vendor == _AMD for function in survey.functions.values()
        if function.is_bridge and function.only_leads_on
    )  # fmt: skip


def _gone(function: Function) -> Refusal:
    return Refusal(
        "device-gone",
        f"{function} does not answer: its configuration space reads all ones"
        f" ({function.sysfs}/config), as that of a device that fell off the bus. Power the machine"
        " off and on; a reboot may not do",
    )


def _reserved(survey: Survey, function: Function) -> Iterator[Refusal]:
    """Yield a refusal if the firmware needs a part of memory mapped for the device: VFIO refuses
    to attach it (intel_iommu_attach_device(); since v6.6 __iommu_device_set_domain())."""
    for member in find_own_functions(survey, function):
        regions = [line for line in member.facts.reserved_regions if line.endswith(" direct")]
        if regions:
            yield Refusal(
                "rmrr",
                f"the firmware keeps {regions[0].rpartition(' ')[0]} mapped for {member} (RMRR,"
                f" /sys/kernel/iommu_groups/{member.group}/reserved_regions), and VFIO refuses the"
                " attach: an option of the firmware's setup that frees it, newer firmware, or"
                " another slot",
            )
            return


def _claimed(function: Function) -> Iterator[Refusal]:
    """Yield a refusal if something else than the device's driver holds memory in its BARs:
    vfio-pci gives no mapping of such a BAR."""
    claims = function.facts.claims
    if others := [name for name in claims if is_lasting_claim(name, function.driver)]:
        yield Refusal(
            "bar-claimed",
            f"{', '.join(others)} claims a part of a BAR of {function} (/proc/iomem), of which"
            " vfio-pci then hands out nothing. Against the firmware's framebuffer:"
            " initcall_blacklist=sysfb_init on the machine's own command line (before v5.15:"
            " video=efifb:off), or another graphics adapter as the primary one in the firmware's"
            " setup",
        )


def _of_the_machine(survey: Survey, members: list[Function]) -> Iterator[Refusal]:
    """Yield refusals if the machine itself needs a function of the group: its console, network or
    disks."""
    for member in survey.reached(members):
        if member.facts.boot_vga == 1:
            yield Refusal(
                "console",
                f"{member} has the machine's console ({member.sysfs}/boot_vga is 1): make another"
                " graphics adapter the primary one in the firmware's setup",
            )
    for user in survey.users_of(members):
        if user.serves and user.kind in _LIVES_ON:
            yield Refusal(
                _LIVES_ON[user.kind],
                f"{_whose(survey, user)} serves {', '.join(user.serves)}{_through(user)}:"
                f" {_ELSEWHERE}",
            )


def _siblings(survey: Survey, function: Function) -> Iterator[Refusal]:
    """Yield a refusal if other devices are in the group, or behind a bridge of the group. Bridges
    that only lead to devices are allowed."""
    own = find_own_functions(survey, function)
    others = [
        neighbor
        for neighbor in survey.reached(survey.members(function))
        if neighbor not in own
        and function.address not in neighbor.facts.parents
        and not (neighbor.only_leads_on and neighbor.driver in _MANAGED)
    ]
    if others:
        group = f"IOMMU group {function.group} (/sys/kernel/iommu_groups/{function.group}/devices)"
        yield Refusal(
            "group-shared",
            f"{group} also has {', '.join(map(str, others))}: a guest gets a group as a whole;"
            " move the device to a slot behind a port of its own with ACS, or choose another",
        )


def _use(survey: Survey, own: list[Function]) -> Iterator[Refusal]:
    for function in own:
        if virtual := function.facts.virtual_functions:
            yield Refusal(
                "in-use",
                f"{function} has virtual functions ({', '.join(virtual)}):"
                f" echo 0 > {function.sysfs}/sriov_numvfs",
            )
        yield from _held(survey, function)
    for user in survey.users_of(own):
        whose = _whose(survey, user)
        parts = [name for name in user.above if not name.startswith(user.name)]  # no partitions
        if user.kind == "open" and user.name.startswith("/dev/vfio/"):
            by = ", ".join(user.serves)
            yield Refusal("owned", f"{whose} is open in {by}: end that guest or program")
        elif user.kind == "open":
            yield Refusal("in-use", f"{whose} is open in {', '.join(user.serves)}: end that")
        elif user.kind == "input":
            yield Refusal("in-use", f"{whose} is plugged in: {_ELSEWHERE}")
        elif user.kind == "network" and user.up and not user.serves:
            yield Refusal("in-use", f"{whose} is up{_through(user)}: ip link set {user.name} down")
        elif user.kind == "disk" and parts and not user.serves:
            yield Refusal(
                "in-use", f"{whose} is part of {', '.join(parts)}: take that apart first"
            )


def _held(survey: Survey, function: Function) -> Iterator[Refusal]:
    """Yield a refusal if NVIDIA's driver is in use although nobody has a device of it open: its
    persistence mode keeps the device, and unbinding it hangs."""
    facts = function.facts
    uses = (facts.module_use or 0) - len(facts.module_holders)
    mine = [f for f in survey.functions.values() if f.facts.module == facts.module]
    if facts.module == "nvidia" and uses > 0 and not survey.users_of(mine):
        yield Refusal(
            "in-use",
            f"the driver of {function} is in use, and no process has it open"
            f" (/sys/module/{facts.module}/refcnt: {facts.module_use}): NVIDIA's persistence mode."
            " nvidia-smi -pm 0, and stop nvidia-persistenced",
        )


def _unplaced(function: Function) -> Iterator[Refusal]:
    for index, bar in function.bars.items():
        if not bar.placed:
            yield Refusal(
                "bar-not-placed",
                f"BAR {index} of {function} has no place ({function.sysfs}/resource, {bar}):"
                f" {_PLACED_BY}",
            )


def _whose(survey: Survey, user: User) -> str:
    where = "" if user.path == user.name else f" ({user.path})"
    return f"{user.name}{where} of {survey.functions[user.function]}"


def _through(user: User) -> str:
    return f", through {', '.join(user.above)}" if user.above else ""


# -- binding --------------------------------------------------------------------------------


def bind_hostdev(host: Host, address: str, bar: int, *, trial: TrialWriter) -> BoundDevice:
    """Bind the function and all that belongs to the same device to vfio-pci under the running
    kernel; the keeper puts them back. host/device.json has the function's state before that.

    Raises ArmFailedError if the proven kernel does not find the function or did not place its BAR,
    BenchError if the function is refused or vfio-pci does not take it.
    """
    survey = survey_devices(host.shell)
    function = survey.functions.get(address)
    if function is None:
        raise ArmFailedError(
            f"the host's kernel does not find {address}",
            evidence="\n".join(_list_functions(survey)), reason=Reason.DEVICE_MISSING,
        )  # fmt: skip
    device = find_bar(address, function.resources, bar, _PLACED_BY)
    _check_spared(survey, function)
    write_json(trial.host / "device.json", function.facts.to_json())
    host.change.bind([member.address for member in find_own_functions(survey, function)])
    return device
