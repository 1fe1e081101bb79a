"""The variable of a comparison: what its arms were made to differ in, and whether that is all.

It is read from plan.json, which says what each arm is, and from the conditions of the trials,
which say what they really had. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, Literal

from orchestrator.analysis.conditions import ARM_PARAMETERS, ARM_SYSFS, NOT_SET, Conditions
from orchestrator.errors import EvidenceError
from orchestrator.reasons import Reason
from orchestrator.scenario import ARMS, ArmName, word_name

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


def variable(plan: Mapping[str, Any], found: Conditions | None) -> Variable:
    """Return the variable of a comparison. `plan` is plan.json. `found`: the conditions of both
    arms' trials; None if an arm has none. Raises EvidenceError for a plan that does not have the
    form of plan.json."""
    try:
        return _variable(plan, found)
    except (KeyError, TypeError, AttributeError) as exc:
        message = f"plan.json does not say what the arms are: {type(exc).__name__}: {exc}"
        raise EvidenceError(message, reason=Reason.BAD_EVIDENCE) from exc


def _variable(plan: Mapping[str, Any], found: Conditions | None) -> Variable:
    kernels, settings = plan["kernels"], plan.get("arm_settings") or {}
    asked = {arm: settings.get(arm) or {} for arm in ARMS}
    things = [
        *_kernels(kernels["baseline"], kernels["candidate"], found),
        *_cmdlines(asked),
        *_settings(
            {arm: asked[arm].get("parameters") or {} for arm in ARMS}, ARM_PARAMETERS, found
        ),
        *_settings({arm: asked[arm].get("sysfs") or {} for arm in ARMS}, ARM_SYSFS, found),
    ]
    others = [d for d in found.differences if not d.planned] if found else []
    return Variable(
        tuple(one for one in things if isinstance(one, Differing)),
        tuple(one for one in things if isinstance(one, str)),
        len(found.common) if found else None,
        tuple(d.name for d in others if not d.allowed),
        tuple(d.name for d in others if d.allowed),
    )


def variable_json(found: Variable) -> dict[str, Any]:
    """Return `variable` of comparison.json."""
    return asdict(found)


# kernels -------------------------------------------------------------------------------------


def _kernels(
    old: Mapping[str, Any], new: Mapping[str, Any], found: Conditions | None
) -> list[Thing]:
    if old == new or old.get("digest", old) == new.get("digest", new):
        return [f"same kernel {new['release']}"]
    before, after = (kernel.get("provenance") or {} for kernel in (old, new))
    if "modules" in before or "modules" in after:  # first: they have a source, too
        things = [*_of_modules(old, new)]
    elif "source" in before and "source" in after:
        things = [*_built(before, after)]
    else:
        things = [*_others(old, new, found)]
    if not any(isinstance(one, Differing) for one in things):
        things.append("built for each arm")
    return things


def _others(
    old: Mapping[str, Any], new: Mapping[str, Any], found: Conditions | None
) -> Iterator[Thing]:
    """Yield what differs, or is the same, in kernels at least one of which was not built here, but
    came built."""
    if old["release"] != new["release"]:
        yield Differing("kernel", "kernel", old["release"], new["release"])
    else:
        yield Differing("kernel", f"kernel {new['release']}", old["source"], new["source"])
    if found is None or found.config is None:
        yield _told("configuration (not recorded)")
    elif found.config:
        yield _told(f"configuration ({len(found.config)} symbols)")
    else:
        yield "same configuration"


def _built(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Thing]:
    """Yield what differs, or is the same, in kernels that were built from source."""
    before, after = old["source"], new["source"]
    if _identity(before) == _identity(after):
        yield f"same source {_source(after)}"
    else:
        yield Differing("kernel", "source", _source(before), _source(after))
    yield from _series(old, new)
    configs = [kernel.get("config") or {} for kernel in (old, new)]
    hashes = [str(config.get("sha256", "")) for config in configs]
    if hashes[0] == hashes[1]:
        yield "same configuration"
    else:
        asked = [", ".join(config.get("asked") or ()) for config in configs]
        shown = asked if asked[0] != asked[1] else [one[:_HASH] for one in hashes]
        yield Differing("kernel", "configuration", *(one or "as it is" for one in shown))
    yield _compiler(old, new)


def _compiler(old: Mapping[str, Any], new: Mapping[str, Any]) -> Thing:
    """Compare the compilers, and their build roots, which hold assembler, linker and libraries."""
    compilers = [str(kernel.get("compiler", "")) for kernel in (old, new)]
    roots = [str(kernel.get("build_root", "")) for kernel in (old, new)]
    if compilers[0] != compilers[1]:
        return Differing("kernel", "compiler", *compilers)
    if roots[0] != roots[1]:
        return Differing("kernel", "build root", *roots)
    return "same compiler"


def _of_modules(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Thing]:
    """Yield what differs, or is the same, in packages of which at least one has rebuilt
    modules."""
    before, after = (kernel.get("provenance") or {} for kernel in (old, new))
    packages = [_package(one) for one in (before, after)]
    if old["release"] == new["release"] and packages[0] == packages[1]:
        yield f"same package of {new['release']}"
    else:
        yield Differing("kernel", "package", *(
            f"{kernel['release']} ({package})"
            for kernel, package in zip((old, new), packages, strict=True)
        ))  # fmt: skip
    yield from _series(before, after)
    modules = [one.get("modules") or {} for one in (before, after)]
    for name in dict.fromkeys([*modules[0], *modules[1]]):
        first, second = (one.get(name) for one in modules)
        stock = (first or second or {})["stock"]["srcversion"]
        versions = [str(one["new"]["srcversion"] if one else stock) for one in (first, second)]
        if first is None or second is None:
            # the package's own module is neither unsigned nor out of tree
            rebuilt = "rebuilt, so unsigned and out of tree"
            said = [f"{v} ({rebuilt})" if one else f"{v} (the package's)"
                    for v, one in zip(versions, (first, second), strict=True)]  # fmt: skip
            yield Differing("kernel", f"module {_module(name)}", *said)
        elif versions[0] != versions[1]:
            yield Differing("kernel", f"module {_module(name)}", *versions)
        else:
            yield f"same {_module(name)}"
    if all(modules):
        yield _compiler(before, after)


def _module(path: str) -> str:
    """Return the name of a module from its path, `drivers/vfio/vfio_iommu_type1`."""
    return path.rpartition("/")[2]


def _series(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Thing]:
    before, after = (list(one.get("series") or ()) for one in (old, new))
    if [p.get("digest") for p in before] == [p.get("digest") for p in after]:
        if after:
            yield f"same series {_patches(after)}"
    elif not before:
        yield Differing("kernel", f"the series {_patches(after)}", "without", "with")
    elif not after:
        yield Differing("kernel", f"the series {_patches(before)}", "with", "without")
    else:
        yield Differing("kernel", "series", _patches(before), _patches(after))


def _patches(series: Iterable[Mapping[str, Any]]) -> str:
    """Name the patches: `fix.mbox (2 patches: SUBJECT; SUBJECT)`."""
    said = []
    for origin, group in groupby(series, lambda patch: str(patch.get("origin", ""))):
        subjects = [str(patch.get("subject", "")) for patch in group]
        number = f"{len(subjects)} patch" + "es" * (len(subjects) != 1)
        name = origin if ".." in origin else PurePosixPath(origin).name
        said.append(f"{name} ({number}: {'; '.join(subjects)})")
    return ", ".join(said)


def _identity(source: Mapping[str, Any]) -> str:
    """Return a key that is equal for the same files, wherever they were."""
    return str(source.get("tree") or source.get("commit") or source.get("sha256") or source)


def _source(source: Mapping[str, Any]) -> str:
    """Name a source: `v7.3 (abc123)`, or the name of a folder, tarball or package."""
    place = str(source.get("describe") or source.get("name") or "")
    place = place or PurePosixPath(str(source.get("path") or "")).name
    known = str(source.get("commit") or source.get("tree") or source.get("sha256") or "")
    return f"{place} ({known[:_HASH]})" if known else place


def _package(provenance: Mapping[str, Any]) -> str:
    """Return the text that tells one package from another."""
    found = provenance.get("package", provenance)
    if isinstance(found, Mapping):
        found = found.get("version") or found.get("from") or found.get("name") or ""
    return str(found)


def _told(what: str) -> Differing:
    return Differing("kernel", what, "", "")


# settings ------------------------------------------------------------------------------------


def _cmdlines(asked: Mapping[ArmName, Mapping[str, Any]]) -> Iterator[Thing]:
    """Yield what differs, or is the same, in the command lines, by what their words set."""
    words: dict[ArmName, dict[str, list[str]]] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        for word in str(asked[arm].get("cmdline") or "").split():
            words[arm].setdefault(word_name(word), []).append(word)
    before, after = words["baseline"], words["candidate"]
    if before == after and [*before] != [*after]:
        shown = (" ".join(str(asked[arm].get("cmdline")).split()) for arm in ARMS)
        yield Differing("setting", "order of the command line", *shown)
    for name in dict.fromkeys([*before, *after]):
        first, second = (" ".join(of_arm.get(name, ())) for of_arm in (before, after))
        if first == second:
            yield f"{first} in both"
        else:
            yield Differing("setting", "command line", first or NOT_SET, second or NOT_SET)


def _settings(
    asked: Mapping[ArmName, Mapping[str, str]], room: str, found: Conditions | None
) -> Iterator[Thing]:
    """Yield what differs, or is the same, in parameters or files, by what was read back if
    known."""
    for name in dict.fromkeys([*asked["baseline"], *asked["candidate"]]):
        before, after = (
            _seen(found, room + name, arm) or str(asked[arm].get(name, NOT_SET)) for arm in ARMS
        )
        alone = [arm for arm in ARMS if name in asked[arm]]
        if before != after:
            yield Differing("setting", name, before, after)
        elif len(alone) == 1:
            yield f"{name}: {after} in both, though only the {alone[0]} sets it"
        else:
            yield f"{name}: {after} in both"


def _seen(found: Conditions | None, name: str, arm: ArmName) -> str:
    """Return the value that an arm's trials had; empty if that is not known."""
    if found is None:
        return ""
    if name in found.common:
        return found.common[name]
    differing = next((d for d in found.differences if d.name == name), None)
    return " and ".join(differing.values.get(arm, ())) if differing else ""
