"""Differences between two kernel configurations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_LINE = re.compile(
    r"(?m)^(?:(CONFIG_[A-Za-z0-9_]+)=(.*?)|# (CONFIG_[A-Za-z0-9_]+) is not set)\r?$"
)
# symbols whose values Kconfig takes from the build's tools (init/Kconfig)
_TOOLCHAIN = re.compile(
    r"CONFIG_(CC|GCC|CLANG|AS|LD|LLD|PAHOLE|RUSTC|RUSTC_LLVM|RUSTC_LLVM_MAJOR|BINDGEN)"
    r"_VERSION(_TEXT)?"
)


class ConfigChange(NamedTuple):
    symbol: str
    """CONFIG_..."""
    old: str
    """Value as the file spells it: `y`, `m`, `250`, `"text"`. `n` also if the file does not have
    the symbol."""
    new: str

    @property
    def toolchain(self) -> bool:
        """True if the symbol describes the tools of the build, not the kernel's content."""
        return _TOOLCHAIN.fullmatch(self.symbol) is not None


def diff_configs(old: str, new: str) -> tuple[ConfigChange, ...]:
    """Return the changes, sorted by symbol. A symbol that is not set and one that a kernel does
    not know are both `n`."""
    before, after = _symbols(old), _symbols(new)
    changes = (
        ConfigChange(symbol, before.get(symbol, "n"), after.get(symbol, "n"))
        for symbol in sorted(before.keys() | after.keys())
    )
    return tuple(change for change in changes if change.old != change.new)


def _symbols(config: str) -> dict[str, str]:
    """Return the value of each symbol. If a symbol has several lines, the last one counts, as with
    Kconfig."""
    return {line[1] or line[3]: line[2] or "n" for line in _LINE.finditer(config)}


_COSTLY = re.compile(
    r"CONFIG_(VFIO|IOMMUFD|.*IOMMU|IRQ_REMAP|.*HUGE|.*_PFNMAP|KVM|PREEMPT|HZ|NO_HZ|SLUB|MEMCG|NUMA"
    r"|DEBUG_(VM|PAGE|LIST|SPIN|MUTEX|LOCK|OBJECTS|PREEMPT)|PROVE|LOCKDEP|KASAN|KCSAN|KMSAN|UBSAN"
    r"|CC_OPTIMIZE|LTO|CFI|MITIGATION|.*RETPOLINE|CPU_FREQ_DEFAULT)"
)
_ABILITY = re.compile(r"CONFIG_(ARCH|HAVE|GENERIC|HYPERV)_(?!.*_PFNMAP)")


def select_costly(changes: Iterable[ConfigChange]) -> tuple[ConfigChange, ...]:
    """Return the changes that can be expected to change the cost of a map, an unmap or a boot:
    those of VFIO, IOMMU, huge pages, KVM, preemption, debugging and mitigations. This is a guess:
    other changes may matter, too."""
    return tuple(
        change
        for change in changes
        if _COSTLY.match(change.symbol) and not _ABILITY.match(change.symbol)
    )
