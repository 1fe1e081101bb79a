"""Cached files that are cut, changed, of another kind, or half-written. Barometer makes them again
and reports it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.base.cache import ENTRY, VERIFIED
from tests.faults.mirrors import SUITE, Archive, Key, serving, works
from tests.faults.place import Fault, made_place, namespace
from tests.faults.test_mirrors import SCENARIO
from tests.faults.test_records import deep, pipe

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def key() -> Iterator[Key]:
    with Key.made() as made:
        yield made


def writable(path: Path) -> Path:
    path.chmod(0o644)
    return path


def truncated(entry: Path) -> None:
    with writable(entry / "vmlinuz").open("r+b") as file:
        file.truncate(100)


def changed(entry: Path) -> None:
    with writable(entry / "vmlinuz").open("r+b") as file:
        file.seek(0x600)
        file.write(b"\xff")


def replaced(entry: Path) -> None:
    (entry / "vmlinuz").unlink()
    (entry / "vmlinuz").mkdir()


def module_gone(entry: Path) -> None:
    next(entry.rglob("*.ko")).unlink()


def a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("")


def a_link(entry: Path) -> None:
    entry.rename(entry.with_name("elsewhere"))
    entry.symlink_to("nowhere")


def seal_cut(entry: Path) -> None:
    (entry / ENTRY).write_text((entry / ENTRY).read_text()[:50])


def seal_is_a_list(entry: Path) -> None:
    (entry / ENTRY).write_text("[]")


def seal_lacks_sums(entry: Path) -> None:
    (entry / ENTRY).write_text(json.dumps({"files": {"vmlinuz": None}}))


def stamps_are_a_list(entry: Path) -> None:
    (entry / VERIFIED).write_text("[]")


def half_written(entry: Path) -> None:
    beside = entry.with_name(f".{entry.name}.killed")
    beside.mkdir()
    (beside / "vmlinuz").write_text("half")
    shutil.rmtree(entry)


ENTRIES: dict[str, Damage] = {
    "truncated": truncated, "changed": changed, "replaced-by-a-folder": replaced,
    "module-gone": module_gone, "is-a-file": a_file, "is-a-link": a_link, "seal-cut": seal_cut,
    "seal-is-deep": lambda entry: deep(entry / ENTRY),
    "seal-is-a-pipe": lambda entry: pipe(entry / ENTRY),
    "seal-is-a-list": seal_is_a_list, "seal-lacks-sums": seal_lacks_sums,
    "stamps-are-a-list": stamps_are_a_list, "half-written": half_written,
}  # fmt: skip


@pytest.fixture(scope="module")
def kernels() -> Iterator[Path]:
    """Yield the cached kernels of a run. The run caches its kernels, and then fails at the host's
    image, because nobody serves its mirror."""
    with made_place() as place:
        first = place.run("run", place.scenario(), "--out", "out")
        assert first.reason == "mirror-unreachable", first.err
        yield place.cache / "kernels"


@pytest.mark.parametrize("damage", ENTRIES.values(), ids=ENTRIES)
def test_cached_kernel(fault: Fault, kernels: Path, damage: Damage) -> None:
    """A second run gets as far as the first, and the kernel is as it was before the damage."""
    place = fault.place
    scenario = place.scenario()
    shutil.copytree(kernels, place.cache / "kernels", symlinks=True)
    entry = min(p for p in place.cache.glob("kernels/*") if p.is_dir())
    before = contents(entry)
    damage(entry)
    fault.ends("run", scenario, "--out", "out")
    assert contents(entry) == before


def contents(entry: Path) -> dict[str, bytes]:
    """Return the files of a cache entry except VERIFIED, which has their times."""
    return {
        str(path.relative_to(entry)): path.read_bytes()
        for path in sorted(entry.rglob("*"))
        if path.is_file() and path.name != VERIFIED
    }


LISTS: dict[str, Damage] = {
    "answers-cut": lambda root: (root / "answers.json").write_text('{"lists": '),
    "answers-are-deep": lambda root: deep(root / "answers.json"),
    "answers-are-a-list": lambda root: (root / "answers.json").write_text("[]"),
    "settings-changed": lambda root: (root / "apt.conf").write_text('Dir "/nowhere";\n'),
    "lists-gone": lambda root: shutil.rmtree(root / "var/lib/apt/lists"),
    "lists-rubbish": lambda root: [
        path.write_bytes(bytes(range(256)))
        for path in (root / "var/lib/apt/lists").glob("*_Packages")
    ],
}


@pytest.mark.parametrize("damage", LISTS.values(), ids=LISTS)
def test_cached_lists_of_the_mirror(fault: Fault, key: Key, damage: Damage) -> None:
    place = fault.place
    archive = Archive(place.root / "mirror", key).make()
    scenario, trusted = place.scenario(SCENARIO), namespace(key.trusted())
    with serving(archive.folder, works) as mirror:
        url = mirror.url
        first = place.run("plan", scenario, under=trusted, BAROMETER_MIRROR=url)
        assert first.code == 0, first.err
        root = place.cache / "apt" / SUITE
        # without these, apt has to read its lists again
        for path in (root / "var/cache/apt").glob("*.bin"):
            path.unlink()
        damage(root)
        fault.ends("plan", scenario, under=trusted, BAROMETER_MIRROR=url)
