"""Read ci/groups.toml: the tests with machines, and the files that each group of them depends
on."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "ci/groups.toml"


@dataclass(frozen=True)
class Group:
    name: str
    tests: tuple[str, ...]
    """The group's test files, as paths from the repository's top folder."""
    depends: tuple[str, ...]
    """Files and folders that the group's full tests are about, its test files included."""
    versions: tuple[str, ...]
    """Names of `versions.VERSIONS`."""
    process: str
    """Name of the process that the group's tests run in."""
    workers: int = 1
    """Number of the group's tests that run at the same time."""
    boots: bool = True
    """False if none of its tests boots a machine."""


@dataclass(frozen=True)
class Groups:
    all: tuple[Group, ...]
    landing: tuple[str, ...]
    """Paths that every landing proves by itself."""

    def find(self, name: str) -> Group:
        """Return the group. Raises ValueError if it does not exist."""
        for group in self.all:
            if group.name == name:
                return group
        known = ", ".join(group.name for group in self.all)
        raise ValueError(f"there is no group {name!r} in {FILE.name}; there are {known}")

    def processes(self, chosen: Iterable[Group]) -> dict[str, tuple[Group, ...]]:
        """Return process -> the chosen groups that run in it, in the order of the file."""
        names = {group.name for group in chosen}
        by_process: dict[str, tuple[Group, ...]] = {}
        for group in self.all:
            if group.name in names:
                by_process[group.process] = (*by_process.get(group.process, ()), group)
        return by_process

    def files_of(self, group: Group, files: Mapping[str, str]) -> dict[str, str]:
        """Select from `files` (path -> digest) those that the group depends on: its own, and those
        that no other group and no landing path lists."""
        own = {*group.depends}
        elsewhere = {*self.landing, *(path for other in self.all for path in other.depends)}
        selected = {}
        for path, digest in files.items():
            places = _list_places(path)
            if not own.isdisjoint(places) or elsewhere.isdisjoint(places):
                selected[path] = digest
        return selected


def read_groups(file: Path = FILE) -> Groups:
    """Read the groups. Raises ValueError for a file that is no TOML, for an unknown set, and for a
    test file that is in two groups."""
    try:
        content = tomllib.loads(file.read_text())
    except ValueError as exc:
        raise ValueError(f"{file}: {exc}") from exc
    sets: dict[str, list[str]] = content["sets"]
    groups = []
    for name, keys in content["groups"].items():
        depends = list(keys["tests"])
        for path in keys["depends"]:
            if path.startswith("@") and path[1:] not in sets:
                raise ValueError(f"{file.name}: group {name}: there is no set {path}")
            depends += sets[path[1:]] if path.startswith("@") else [path]
        groups.append(
            Group(
                name=name, tests=tuple(keys["tests"]), depends=tuple(depends),
                versions=tuple(keys["versions"]), process=keys.get("process", name),
                workers=keys.get("workers", 1), boots=keys.get("boots", True),
            )
        )  # fmt: skip
    tests = [test for group in groups for test in group.tests]
    for test in tests:
        if tests.count(test) > 1:
            raise ValueError(f"{file.name}: {test} is in two groups")
    return Groups(tuple(groups), tuple(content["landing"]["paths"]))


def _list_places(path: str) -> list[str]:
    """Return the path and every folder that contains it."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
