"""Can this machine give a guest its device with the large BAR? Findings, from evidence alone."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.doctor.abilities import ExaminedMachine, parse_number
from orchestrator.analysis.doctor.finding import Finding, Needs
from orchestrator.evidence.surveys.checkup_facts import NOT_EXAMINED, BarFacts, ChosenDevice
from orchestrator.formats.units import GIB, MIB, format_size
from orchestrator.formats.windows import (
    OVMF_SHARES,
    Vendor,
    choose_placed,
    find_least_bits,
    find_window,
)

_MAY_GROW = 64 * MIB
"""Least size of a BAR that may be a large one's before it is resized: GPUs have 256 MiB then."""
_LARGE = GIB
"""Least size of a large BAR: a leaf of 1 GiB can map it."""
_TYPE1 = "/sys/module/vfio_iommu_type1/parameters"
_UNSAFE = "vfio_iommu_type1.allow_unsafe_interrupts"
_OWN_WORDS = (
    "the machine's own command line (GRUB_CMDLINE_LINUX of /etc/default/grub, then update-grub or"
    " grub2-mkconfig; host.cmdline applies to the kernels under test only)"
)
_SP_OFF = {"intel_iommu": {"sp_off"}, "amd_iommu": {"nohugepages"}}
"""Options that leave the IOMMU with 4 KiB leaves. v2_pgsizes_only is not one of them: it keeps 2
MiB and 1 GiB (Documentation/admin-guide/kernel-parameters.txt)."""
_FEW_ENTRIES = 1024
"""A lower limit of DMA mappings may be too low: a guest boot needs one mapping for each run of its
memory and for each BAR."""


def check_iommu(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    intel = machine.intel
    table = f"/sys/firmware/acpi/tables/{'DMAR' if intel else 'IVRS'}"
    iommus = machine.facts.iommus
    if iommus and machine.facts.groups:
        yield Finding("iommu", "ok", f"an IOMMU is on: {', '.join(iommus[:4])}",
                      (f"/sys/class/iommu: {' '.join(iommus)}",))  # fmt: skip
        return
    evidence = ["/sys/class/iommu: " + (" ".join(iommus) or "empty")]
    option = "intel_iommu" if intel else "amd_iommu"
    evidence += [f"{table}: {'there' if machine.present(table) else 'no such file'}"]
    evidence += [f"/proc/cmdline: {word}" for word in machine.words if "iommu" in word]
    if "off" in machine.options(option) + machine.options("iommu"):
        fix = f"take {option}=off or iommu=off out of {_OWN_WORDS}, and reboot"
    elif machine.present(table) and intel:
        fix = f"add intel_iommu=on to {_OWN_WORDS}, and reboot"
    elif machine.present(table):
        # on by default; parse_amd_iommu_options() knows no "on"
        fix = (
            "dmesg | grep AMD-Vi says why. The kernel needs CONFIG_AMD_IOMMU; if an erratum turned"
            f" the IOMMU off, put amd_iommu=force_enable on {_OWN_WORDS}, and reboot"
        )
    elif machine.is_guest:
        fix = (
            "this is a VM: give it an IOMMU where it runs (QEMU: -device intel-iommu,intremap=on)"
        )
    else:
        fix = f"turn on {'VT-d' if intel else 'the IOMMU (AMD-Vi)'} in the firmware's setup"
    yield Finding("iommu", "problem", "no IOMMU is on: no device can be given to a guest",
                  tuple(evidence), fix)  # fmt: skip


def check_superpages(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    """Yield a finding on the leaves of the IOMMU's own page tables. With 4 KiB alone a map writes
    an entry for each page."""
    if not (iommus := machine.facts.iommus):
        return
    off = [f"{name}={word}" for name, words in _SP_OFF.items()
           for word in machine.options(name) if word in words]  # fmt: skip
    if off:
        yield Finding(
            "iommu-superpages", "warning",
            f"{off[0]}: the IOMMU maps by 4 KiB pages, 8388608 for 32 GiB, on every kernel",
            (machine.quote("/proc/cmdline"),), f"take {off[0].split('=')[1]} out, and reboot",
        )  # fmt: skip
        return
    units = machine.superpages
    for unit in units:
        if "1GiB" not in unit.sizes:
            largest = unit.sizes[-1] if unit.sizes else "4KiB"
            yield Finding(
                "iommu-superpages", "warning",
                f"{unit.unit} has leaves of {largest} at most, not of 1 GiB",
                (f"{unit.path}: {unit.register} (bits 34 and 35: 2 MiB, 1 GiB)",),
                "none: the hardware has no larger ones; both kernels pay for it alike",
            )  # fmt: skip
            return
    if units:
        yield Finding("iommu-superpages", "ok", "the IOMMU has leaves of 2 MiB and 1 GiB",
                      tuple(f"{u.path}: {u.register}" for u in units[:2]))  # fmt: skip
    elif any(name.startswith("ivhd") for name in iommus):
        # AMD_IOMMU_PGSIZES of drivers/iommu/amd/: every power of two but 512 GiB
        yield Finding("iommu-superpages", "ok", "AMD's page tables have leaves of every size",
                      (f"/sys/class/iommu: {' '.join(iommus)}",))  # fmt: skip
    else:
        yield Finding("iommu-superpages", "note", "nothing shows which leaves this IOMMU has",
                      (f"/sys/class/iommu: {' '.join(iommus)}",),
                      "run the workload map: its counts show them")  # fmt: skip


def check_interrupt_remapping(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    """Yield a finding on interrupt remapping, without which type1 refuses every device
    (vfio_iommu_type1_attach_group(): EPERM)."""
    chips = " ".join(machine.facts.interrupts) or "nothing"
    evidence = [f"/proc/interrupts: {chips}"]
    if machine.remaps_interrupts:
        yield Finding("interrupt-remapping", "ok", "interrupts are remapped", tuple(evidence))
        return
    if not machine.facts.iommus:
        return
    unsafe = f"{_TYPE1}/allow_unsafe_interrupts"
    evidence += [f"/proc/cmdline: {w}" for w in machine.words if "intremap" in w or _UNSAFE in w]
    # the file is there once the module is loaded
    if (machine.file(unsafe) or "".join(machine.options(_UNSAFE)[-1:])) in ("Y", "1"):
        yield Finding("interrupt-remapping", "note",
                      "interrupts are not remapped, which type1 is set to allow",
                      (*evidence, machine.quote(unsafe)),
                      "fine if the guests are trusted")  # fmt: skip
        return
    if any("nointremap" in w or "intremap=off" in w for w in machine.words):
        fix = f"take intremap=off or nointremap out of {_OWN_WORDS}, and reboot"
    else:
        fix = ("turn it on in the firmware's setup; or, if the guests are trusted, add"
               f" {_UNSAFE}=1 to {_OWN_WORDS}, and reboot")  # fmt: skip
    yield Finding("interrupt-remapping", "problem",
                  "interrupts are not remapped: VFIO refuses every device", tuple(evidence),
                  fix)  # fmt: skip


def check_groups(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    if not machine.facts.groups:
        return
    number, members = max(machine.facts.groups.items(), key=lambda item: len(item[1]))
    evidence = (f"/sys/kernel/iommu_groups/{number}/devices: {' '.join(members[:8])}",)
    number_of = len(machine.facts.groups)
    count = f"{number_of} IOMMU group{'s' * (number_of != 1)}, the largest of {len(members)}"
    yield Finding("iommu-groups", "ok", count, evidence)


def check_device(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    """Yield a finding on the device that a scenario names."""
    if (choice := machine.facts.device) is None:
        return
    if isinstance(choice, ChosenDevice):
        yield Finding("device", "ok", f"{choice.chosen} can be given to a guest",
                      (f"/sys/bus/pci/devices/{choice.chosen}",))  # fmt: skip
    else:
        yield Finding("device", "problem", choice.why, choice.evidence,
                      choice.hint or "name another: device.address")  # fmt: skip


def check_large_bars(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    if machine.facts.device is not None:
        return
    if machine.facts.bars is NOT_EXAMINED:
        yield Finding(
            "large-bar", "problem", "it is not known if a device has a large BAR",
            ("/sys/bus/pci/devices: not looked at",), "run barometer doctor on this machine",
        )  # fmt: skip
        return
    least = needs.bar or _LARGE
    bars = sorted(machine.bars, key=lambda bar: (-bar.size, bar.address))
    large = [bar for bar in bars if bar.size >= least]
    free = [bar for bar in large if bar.placed and not bar.refused]
    for bar in free:
        yield Finding("large-bar", "ok", f"{_named(bar)} can be given to a guest", (_path(bar),))
    for bar in large:
        if not bar.placed:
            yield Finding(
                "large-bar", "warning" if free else "problem",
                f"{_named(bar)} has no place in the address space", (_path(bar),),
                "turn on Above 4G Decoding in the firmware's setup, or put pci=realloc on the"
                " command line",
            )  # fmt: skip
        elif bar.refused:
            yield Finding(
                "large-bar", "note" if free else "problem",
                f"{_named(bar)} cannot be spared", bar.refused,
                "free it, or put in another device" if not free else "none: another is free",
            )  # fmt: skip
    for bar in bars:
        if bar.growable is not None and bar.size < least <= bar.growable:
            yield Finding(
                "resizable-bar", "note" if free else "warning",
                f"{_named(bar)} can have {format_size(bar.growable)} (Resizable BAR)",
                (f"/sys/bus/pci/devices/{bar.address}/resource{bar.index}_resize",),
                "turn on Resizable BAR in the firmware's setup; or, until the next boot, write to"
                " that file while no driver is bound",
            )  # fmt: skip
    asleep = [b for b in bars if b.growable is None and _MAY_GROW <= b.size < least]
    for bar in asleep if not free else []:
        yield Finding(
            "resizable-bar", "note",
            f"whether {_named(bar)} can be larger is not known: the device sleeps",
            (f"/sys/bus/pci/devices/{bar.address}/power/runtime_status: suspended",),
            f"echo on > /sys/bus/pci/devices/{bar.address}/power/control wakes it; then ask again",
        )  # fmt: skip
    if not large:
        text = f"no device has a BAR of {format_size(least)} or more"
        listed = [f"{_path(bar)}: {_named(bar)}" for bar in bars[:3]]
        yield Finding(
            "large-bar", "problem", text,
            tuple(listed) or ("/sys/bus/pci/devices/*/resource: no memory BAR",),
            "put in a device with a large BAR; for a GPU, turn on Resizable BAR and Above 4G"
            " Decoding in the firmware's setup",
        )  # fmt: skip


def _named(bar: BarFacts) -> str:
    driver = f", driver {bar.driver}" if bar.driver else ""
    return f"{bar.address} BAR {bar.index} of {format_size(bar.size)}{driver}"


def _path(bar: BarFacts) -> str:
    return f"/sys/bus/pci/devices/{bar.address}/resource"


def check_address_bits(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on the width of addresses: of the guest's CPU, in which its firmware must
    place the BAR, and of the IOMMU."""
    bits = machine.physical_bits
    if bits is None:
        return
    evidence = (f"/proc/cpuinfo: address sizes: {machine.cpu('address sizes')}",)
    size = needs.bar or max((b.size for b in machine.bars), default=0)
    guest = needs.guest_bits or bits
    if guest > bits:
        yield Finding(
            "address-bits", "problem",
            f"a guest of {guest} physical address bits has more than the machine, {bits}: what its"
            " firmware puts above cannot be reached",
            evidence,
            f"set guest.phys_bits to {bits}, or leave it out: then it is the machine's number",
        )  # fmt: skip
        return
    if size and (least := _find_needed_bits(machine, needs, size, guest)) is not None:
        yield Finding(
            "address-bits", "problem",
            f"{guest} physical address bits leave no 64-bit window for {format_size(size)}"
            f" ({needs.firmware})",
            evidence, f"set guest.phys_bits to {least} or more, or use another processor",
        )  # fmt: skip
        return
    narrow = [u for u in machine.superpages if u.address_bits < guest]
    if narrow and needs.boots_guest:
        unit = narrow[0]
        yield Finding(
            "address-bits", "warning",
            f"a guest has {guest} physical address bits, but {unit.unit} translates only"
            f" {unit.address_bits}: a BAR that firmware puts above that cannot be mapped",
            (*evidence, f"{unit.path}: {unit.register} (MGAW, bits 21:16)"),
            f"guest.phys_bits = {unit.address_bits}",
        )  # fmt: skip
        return
    room = f", enough for {format_size(size)}" if size >= MIB else ""
    yield Finding("address-bits", "ok", f"{bits} physical address bits{room}", evidence)


def _find_needed_bits(machine: ExaminedMachine, needs: Needs, size: int, guest: int) -> int | None:
    """Return the address bits that a guest needs for a BAR of this size; None if it has enough.
    Without a guest the BAR needs a place above the machine's memory alone: it is aligned to its
    size, so the lowest place ends at twice its size."""
    if not needs.boots_guest:
        return size.bit_length() if guest < size.bit_length() else None
    vendor: Vendor = "intel" if machine.intel else "amd"
    for share in OVMF_SHARES:
        window = find_window(
            needs.firmware, guest, needs.guest_memory, [[size]], vendor=vendor, share=share
        )
        if all(choose_placed(window, [[size]])):
            return None
    least = find_least_bits(needs.firmware, needs.guest_memory, [[size]], vendor=vendor)
    return least or size.bit_length()


def check_limits(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    path = f"{_TYPE1}/dma_entry_limit"
    entries = parse_number(machine.file(path))
    if entries is not None:
        text = f"type1 allows a container {entries} DMA mappings"
        if entries < _FEW_ENTRIES:
            yield Finding("dma-entries", "warning", text,
                          (machine.quote(path),),
                          "take dma_entry_limit out of /etc/modprobe.d and the command line (the"
                          " default is 65535); or host.cmdline ="
                          ' "vfio_iommu_type1.dma_entry_limit=65535"')  # fmt: skip
        else:
            yield Finding("dma-entries", "ok", text, (machine.quote(path),))
    limit = machine.facts.memlock
    evidence = (f"getrlimit(RLIMIT_MEMLOCK): {'unlimited' if limit < 0 else limit}",)
    if machine.is_root or limit < 0 or limit >= needs.guest_memory + GIB:
        is_exempt = machine.is_root and limit >= 0
        why = "root is not bound by it" if is_exempt else "no limit in the way"
        yield Finding("memlock", "ok", f"locked memory: {why}", evidence)
    else:
        yield Finding(
            "memlock", "note",
            f"this user may lock {format_size(limit) if limit else 0} of memory: only libvirt's"
            " system daemon, which lifts the limit, can give a guest a device",
            evidence, "run as root, or raise memlock in /etc/security/limits.d",
        )  # fmt: skip


def check_vfio(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    """Yield a finding on VFIO in the running kernel. VFIO need not be loaded yet: it is loaded
    when it is needed."""
    place = machine.facts.symbols.get("vfio_iommu_type1_ioctl")
    if place:
        yield Finding("vfio", "ok", "the running kernel has VFIO's type1", (place,))
    elif machine.unread:
        yield Finding(
            "vfio", "note", "it is not known if the running kernel has VFIO",
            machine.unread, "none: the kernels under test are checked when they are staged",
        )  # fmt: skip
    else:
        yield Finding(
            "vfio", "warning", "the running kernel has no type1 of VFIO",
            ("/proc/kallsyms, modules.dep: no vfio_iommu_type1",),
            "the kernels under test need CONFIG_VFIO_IOMMU_TYPE1",
        )  # fmt: skip
