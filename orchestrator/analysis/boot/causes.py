"""Causes of QEMU's maps and unmaps: the writes to PCI configuration space that lead to them.

QEMU handles a write in the thread that made it, and maps and unmaps before it returns: an
operation's trigger is the last thing that its thread is known to have done before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from orchestrator.analysis.boot.qemu import HOST_BRIDGES, ConfigWrite, QemuEvent
from orchestrator.analysis.tracefs.trace import Operation

UNKNOWN = "not known"
# PCI Local Bus Specification 3.0, 6.1 and 6.2; PCI-to-PCI Bridge Architecture 1.2, 3.2
_COMMAND, _MEMORY, _BAR0, _ALL_ONES = 0x04, 0x2, 0x10, 0xFFFFF800
_BARS, _ROM = {False: 6, True: 2}, {False: 0x30, True: 0x38}
_WINDOWS, _BUSES, _CONTROL = range(0x1C, 0x34), range(0x18, 0x1B), range(0x3E, 0x40)
# hw/pci-host/q35.c and i440fx: registers of the host bridge that change the guest's memory
_HOST_REGISTERS = (
    (range(0x59, 0x60), "shadowing the firmware (PAM)"),
    (range(0x60, 0x68), "placing the PCIe configuration space"),
    (range(0x90, 0x97), "shadowing the firmware (PAM)"),
    (range(0x9D, 0x9F), "system management memory"),
)
_OTHER_TRIGGERS = {
    "vfio_attach_device": "device attached",
    "vfio_pci_reset": "device reset",
    "qemu_system_shutdown_request": "exit",
    "vtd_switch_address_space": "the guest's IOMMU",
    "fw_cfg_select": UNKNOWN,  # the guest ran on: what this thread does next has another cause
}
_STALE_SECONDS = 0.2
"""QEMU acts on a write at once. An operation that begins more than this after the write, or after
the last operation for that write, has another cause."""


class Causes:
    """The causes of the operations of one boot, from all of QEMU's events in order of time."""

    def __init__(
        self,
        events: Sequence[QemuEvent],
        writes: Sequence[ConfigWrite],
        acts: Iterable[tuple[float, float, int]],
    ) -> None:
        """`acts`: (start, end, thread) of all maps, unmaps and zaps."""
        self._by_function: dict[str, list[ConfigWrite]] = defaultdict(list)
        self._triggers: dict[int, list[tuple[float, str, ConfigWrite | None, int]]] = defaultdict(
            list
        )
        self._upper: dict[str, set[str]] = defaultdict(set)
        self._same_before: dict[ConfigWrite, ConfigWrite | None] = {}
        last: dict[tuple[str, int], ConfigWrite] = {}
        for write in writes:
            of_function = self._by_function[write.address]
            self._triggers[write.thread].append((write.time, "", write, len(of_function)))
            of_function.append(write)
            if (half := _upper_half(write)) is not None:
                self._upper[write.address].add(half)
            register = (write.address, write.offset)
            self._same_before[write] = last.get(register)
            last[register] = write
        for event in events:
            if (cause := _OTHER_TRIGGERS.get(event.name)) is not None:
                self._triggers[event.thread].append((event.time, cause, None, 0))
        for triggers in self._triggers.values():
            triggers.sort(key=lambda trigger: trigger[0])
        self._stale: set[tuple[int, float]] = set()
        busy: dict[int, float] = {}
        for start, end, thread in sorted(acts):
            if (latest := self._at(thread, start)) is not None:
                if start - max(latest[0], busy.get(thread, 0.0)) > _STALE_SECONDS:
                    self._stale.add((thread, start))
                else:
                    busy[thread] = end

    def trigger(self, thread: int, time: float) -> ConfigWrite | None:
        """Return the configuration write that a thread was handling at a time, or None."""
        last = self._at(thread, time)
        return None if last is None else last[2]

    def of(self, operation: Operation, bar: str) -> str:
        """Return the cause of an operation on a BAR ("01:00.0 BAR 2") or on RAM."""
        if operation.kind == "release":
            return "exit"
        return self.at(operation.pid, operation.start, bar)

    def at(self, thread: int, time: float, bar: str) -> str:
        last = self._at(thread, time)
        if last is None:
            return UNKNOWN
        _, cause, write, index = last
        if write is None:
            return cause
        return self._of_write(write, index) + self._whose(write, bar)

    def _at(self, thread: int, time: float) -> tuple[float, str, ConfigWrite | None, int] | None:
        triggers = self._triggers.get(thread, [])
        index = bisect_right(triggers, time, key=lambda trigger: trigger[0])
        return triggers[index - 1] if index and (thread, time) not in self._stale else None

    @staticmethod
    def _whose(write: ConfigWrite, bar: str) -> str:
        """Name the function that was written to, unless the BAR is its own."""
        if write.bridge:
            return f" of bridge {write.address}"
        if write.device in HOST_BRIDGES or bar.startswith(f"{write.address} "):
            return ""
        return f" of {write.address}"

    def _of_write(self, write: ConfigWrite, index: int) -> str:
        offset, doing = write.offset, "sizing" if self._sizes(write) else "moving"
        known = {}
        if write.device in HOST_BRIDGES:
            known = dict(_HOST_REGISTERS)
        elif write.bridge:
            window = "sizing the window" if doing == "sizing" else "setting the window"
            known = {_BUSES: "bus numbers", _WINDOWS: window, _CONTROL: "bridge control"}
        if offset == _COMMAND:
            return self._decoding(write, index)
        if (register := _register(write)) is not None:
            return f"{doing} {register}"
        return next(
            (cause for registers, cause in known.items() if offset in registers),
            f"configuration register {offset:#x}",
        )

    def _sizes(self, write: ConfigWrite) -> bool:
        """True if all ones are written, or are replaced by the former value: so software finds out
        a size."""
        before = self._same_before[write]
        return _all_ones(write) or (before is not None and _all_ones(before))

    def _decoding(self, write: ConfigWrite, index: int) -> str:
        """Return why memory decoding was switched off or on, from the writes while it was off."""
        writes = self._by_function[write.address]
        on = bool(write.value & _MEMORY)
        step = -1 if on else 1
        between: list[ConfigWrite] = []
        index += step
        while 0 <= index < len(writes) and writes[index].offset != _COMMAND:
            between.append(writes[index])
            index += step
        if on and index < 0:
            return "enabling"  # for the first time
        if on and writes[index].value & _MEMORY:
            return "command register"  # decoding was on, other bits changed
        upper = self._upper[write.address]
        if sized := _registers([w for w in between if _all_ones(w)], upper):
            return f"sizing {sized}"
        if moved := _registers(between, upper):
            return f"moving {moved}"
        return "enabling" if on else "disabling"


def _all_ones(write: ConfigWrite) -> bool:
    return write.value & _ALL_ONES == _ALL_ONES or (
        write.bridge and write.offset in _WINDOWS and write.value in (0xFFFF, 0xFFFFFFFF)
    )


def _register(write: ConfigWrite) -> str | None:
    number, rest = divmod(write.offset - _BAR0, 4)
    if write.offset == _ROM[write.bridge]:
        return "ROM"
    return f"BAR {number}" if rest == 0 and 0 <= number < _BARS[write.bridge] else None


def _upper_half(write: ConfigWrite) -> str | None:
    """Return the register with the upper half of the BAR that is written, if the BAR is 64-bit by
    its type, else None."""
    if _register(write) in (None, "ROM") or _all_ones(write) or write.value & 0x7 != 0x4:
        return None
    return f"BAR {(write.offset - _BAR0) // 4 + 1}"


def _registers(writes: Sequence[ConfigWrite], upper: AbstractSet[str]) -> str:
    """Name the registers: "BAR 2", "BARs 0, 1 and ROM". A 64-bit BAR is named after its lower
    half."""
    registers = {name for w in writes if (name := _register(w)) is not None} - upper
    numbers = sorted(int(name[4:]) for name in registers if name != "ROM")
    if len(numbers) > 1:
        text = "BARs " + ", ".join(map(str, numbers))
    else:
        text = "".join(f"BAR {number}" for number in numbers)
    return " and ".join(filter(None, (text, "ROM" * ("ROM" in registers))))
