"""The variable of a comparison: what its arms were made to differ in, and whether that is all.

It is read from plan.json, which says what each arm is, and from the conditions of the trials,
which say what they really had. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import Literal

from orchestrator.analysis.conditions.conditions import (
    ARM_PARAMETERS,
    ARM_SYSFS,
    NOT_SET,
    Conditions,
)
from orchestrator.evidence.kernel import KernelRecord, PatchRecord, Provenance, SourceRecord
from orchestrator.evidence.plan import Plan, SettingsRecord
from orchestrator.scenario.vocabulary import ARMS, ArmName, word_name

_HASH = 12
"""Digits of a hash that are shown to people."""


@dataclass(frozen=True)
class Differing:
    kind: Literal["kernel", "setting"]
    what: str
    baseline: str
    """Values of the arms. Both are empty if `what` says it all."""
    candidate: str


Thing = Differing | str
"""A difference, or a phrase for something that is the same."""


@dataclass(frozen=True)
class Variable:
    differs: tuple[Differing, ...]
    """Intended differences. None: a kernel against itself, A/A."""
    same: tuple[str, ...]
    """Phrases for what could differ and does not: `same kernel 7.3.4`."""
    checked: int | None
    """Number of conditions that are the same in both arms; None if an arm recorded none."""
    unplanned: tuple[str, ...]
    """Conditions that differ and must not."""
    allowed: tuple[str, ...]
    """Conditions that differ and may, without being the variable."""


def find_variable(plan: Plan, checked: Conditions | None) -> Variable:
    """Return the variable of a comparison. `checked`: the conditions of both arms' trials; None if
    an arm has none."""
    kernels = plan.kernels
    requested = {
        arm: plan.arm_settings[arm] if plan.arm_settings is not None else SettingsRecord()
        for arm in ARMS
    }
    things = [
        *_kernels(kernels.baseline, kernels.candidate, checked),
        *_cmdlines({arm: requested[arm].cmdline for arm in ARMS}),
        *_settings({arm: requested[arm].parameters for arm in ARMS}, ARM_PARAMETERS, checked),
        *_settings({arm: requested[arm].sysfs for arm in ARMS}, ARM_SYSFS, checked),
    ]
    others = [d for d in checked.differences if not d.planned] if checked else []
    return Variable(
        tuple(thing for thing in things if isinstance(thing, Differing)),
        tuple(thing for thing in things if isinstance(thing, str)),
        len(checked.common) if checked else None,
        tuple(d.name for d in others if not d.allowed),
        tuple(d.name for d in others if d.allowed),
    )


def variable_json(variable: Variable) -> dict[str, object]:
    """Return `variable` of comparison.json."""
    return asdict(variable)


# kernels -------------------------------------------------------------------------------------


def _kernels(old: KernelRecord, new: KernelRecord, checked: Conditions | None) -> list[Thing]:
    if old.digest == new.digest:
        return [f"same kernel {new.release}"]
    before, after = old.provenance, new.provenance
    # first those with rebuilt modules: they have a source, too
    if before.modules is not None or after.modules is not None:
        things = [*_of_modules(old, new)]
    elif before.source is not None and after.source is not None:
        things = [*_built(before, before.source, after, after.source)]
    else:
        things = [*_others(old, new, checked)]
    if not any(isinstance(thing, Differing) for thing in things):
        things.append("built for each arm")
    return things


def _others(old: KernelRecord, new: KernelRecord, checked: Conditions | None) -> Iterator[Thing]:
    """Yield what differs, or is the same, in kernels at least one of which was not built here, but
    came built."""
    if old.release != new.release:
        yield Differing("kernel", "kernel", old.release, new.release)
    else:
        yield Differing("kernel", f"kernel {new.release}", old.source, new.source)
    if checked is None or checked.config is None:
        yield _of_kernel("configuration (not recorded)")
    elif checked.config:
        yield _of_kernel(f"configuration ({len(checked.config)} symbols)")
    else:
        yield "same configuration"


def _built(
    old: Provenance, old_source: SourceRecord, new: Provenance, new_source: SourceRecord
) -> Iterator[Thing]:
    """Yield what differs, or is the same, in kernels that were built from source."""
    if _identity(old_source) == _identity(new_source):
        yield f"same source {_source(new_source)}"
    else:
        yield Differing("kernel", "source", _source(old_source), _source(new_source))
    yield from _series(old, new)
    hashes = [kernel.config.sha256 if kernel.config else "" for kernel in (old, new)]
    if hashes[0] == hashes[1]:
        yield "same configuration"
    else:
        options = [
            ", ".join(kernel.config.asked) if kernel.config else "" for kernel in (old, new)
        ]
        shown = options if options[0] != options[1] else [text[:_HASH] for text in hashes]
        yield Differing("kernel", "configuration", *(text or "as it is" for text in shown))
    yield _compiler(old, new)


def _compiler(old: Provenance, new: Provenance) -> Thing:
    """Compare the compilers, and their build roots, which hold assembler, linker and libraries."""
    if old.compiler != new.compiler:
        return Differing("kernel", "compiler", old.compiler or "", new.compiler or "")
    if old.build_root != new.build_root:
        return Differing("kernel", "build root", old.build_root or "", new.build_root or "")
    return "same compiler"


def _of_modules(old: KernelRecord, new: KernelRecord) -> Iterator[Thing]:
    """Yield what differs, or is the same, in packages of which at least one has rebuilt
    modules."""
    before, after = old.provenance, new.provenance
    packages = [_package(provenance) for provenance in (before, after)]
    if old.release == new.release and packages[0] == packages[1]:
        yield f"same package of {new.release}"
    else:
        yield Differing("kernel", "package", *(
            f"{kernel.release} ({package})"
            for kernel, package in zip((old, new), packages, strict=True)
        ))  # fmt: skip
    yield from _series(before, after)
    modules = [provenance.modules or {} for provenance in (before, after)]
    rebuilt = "rebuilt, so unsigned and out of tree"
    for name in dict.fromkeys([*modules[0], *modules[1]]):
        first, second = (of_arm.get(name) for of_arm in modules)
        if first is None or second is None:
            # the package's own module is neither unsigned nor out of tree
            shown = [
                f"{module.new.srcversion} ({rebuilt})"
                if module is not None
                else f"{other.stock.srcversion if other is not None else ''} (the package's)"
                for module, other in ((first, second), (second, first))
            ]
            yield Differing("kernel", f"module {_module(name)}", *shown)
        elif first.new.srcversion != second.new.srcversion:
            versions = (str(module.new.srcversion) for module in (first, second))
            yield Differing("kernel", f"module {_module(name)}", *versions)
        else:
            yield f"same {_module(name)}"
    if all(modules):
        yield _compiler(before, after)


def _module(path: str) -> str:
    """Return the name of a module from its path, `drivers/vfio/vfio_iommu_type1`."""
    return path.rpartition("/")[2]


def _series(old: Provenance, new: Provenance) -> Iterator[Thing]:
    before, after = old.series, new.series
    if [patch.digest for patch in before] == [patch.digest for patch in after]:
        if after:
            yield f"same series {_patches(after)}"
    elif not before:
        yield Differing("kernel", f"the series {_patches(after)}", "without", "with")
    elif not after:
        yield Differing("kernel", f"the series {_patches(before)}", "with", "without")
    else:
        yield Differing("kernel", "series", _patches(before), _patches(after))


def _patches(series: Iterable[PatchRecord]) -> str:
    """Name the patches: `fix.mbox (2 patches: SUBJECT; SUBJECT)`."""
    named = []
    for origin, group in groupby(series, lambda patch: patch.origin):
        subjects = [patch.subject for patch in group]
        number = f"{len(subjects)} patch" + "es" * (len(subjects) != 1)
        name = origin if ".." in origin else PurePosixPath(origin).name
        named.append(f"{name} ({number}: {'; '.join(subjects)})")
    return ", ".join(named)


def _identity(source: SourceRecord) -> object:
    """Return a key that is equal for the same files, wherever they were."""
    return source.tree or source.commit or source.sha256 or source


def _source(source: SourceRecord) -> str:
    """Name a source: `v7.3 (abc123)`, or the name of a folder, tarball or package."""
    place = source.describe or source.name or PurePosixPath(source.path or "").name
    known = source.commit or source.tree or source.sha256
    return f"{place} ({known[:_HASH]})" if known else place


def _package(provenance: Provenance) -> str:
    """Return the text that tells one package from another."""
    package = provenance.package or provenance
    return package.version or package.origin or package.name or ""


def _of_kernel(text: str) -> Differing:
    return Differing("kernel", text, "", "")


# settings ------------------------------------------------------------------------------------


def _cmdlines(cmdlines: Mapping[ArmName, str]) -> Iterator[Thing]:
    """Yield what differs, or is the same, in the command lines, by what their words set."""
    words: dict[ArmName, dict[str, list[str]]] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        for word in cmdlines[arm].split():
            words[arm].setdefault(word_name(word), []).append(word)
    before, after = words["baseline"], words["candidate"]
    if before == after and [*before] != [*after]:
        shown = (" ".join(cmdlines[arm].split()) for arm in ARMS)
        yield Differing("setting", "order of the command line", *shown)
    for name in dict.fromkeys([*before, *after]):
        first, second = (" ".join(of_arm.get(name, ())) for of_arm in (before, after))
        if first == second:
            yield f"{first} in both"
        else:
            yield Differing("setting", "command line", first or NOT_SET, second or NOT_SET)


def _settings(
    settings: Mapping[ArmName, Mapping[str, str]], room: str, checked: Conditions | None
) -> Iterator[Thing]:
    """Yield what differs, or is the same, in parameters or files, by what was read back if
    known."""
    for name in dict.fromkeys([*settings["baseline"], *settings["candidate"]]):
        before, after = (
            _seen(checked, room + name, arm) or settings[arm].get(name, NOT_SET) for arm in ARMS
        )
        alone = [arm for arm in ARMS if name in settings[arm]]
        if before != after:
            yield Differing("setting", name, before, after)
        elif len(alone) == 1:
            yield f"{name}: {after} in both, though only the {alone[0]} sets it"
        else:
            yield f"{name}: {after} in both"


def _seen(checked: Conditions | None, name: str, arm: ArmName) -> str:
    """Return the value that an arm's trials had; empty if that is not known."""
    if checked is None:
        return ""
    if name in checked.common:
        return checked.common[name]
    differing = next((d for d in checked.differences if d.name == name), None)
    return " and ".join(differing.values.get(arm, ())) if differing else ""
