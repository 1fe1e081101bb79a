"""The files that belong to each group of tests."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ci.lanes.__main__ import _make_process
from ci.lanes.content import LOCKS, digest_of, files_in
from ci.lanes.groups import ROOT, Group, Groups, read_groups
from ci.lanes.plan import digest_contents, find_groups_with_full_tests
from ci.lanes.versions import VERSIONS


def group(name: str, *depends: str, process: str = "") -> Group:
    return Group(name, (f"tests/lab/test_{name}.py",), depends, (), process or name)


FILES = files_in(ROOT)
TWO = Groups((group("a", "x/a", "x/both"), group("b", "x/b", "x/both", "top")), ("README", "top"))


def belong(groups: Groups, path: str) -> set[str]:
    return {g.name for g in groups.all if groups.files_of(g, {path: "1"})}


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("x/a", {"a"}), ("x/a/deep/file", {"a"}), ("x/both/file", {"a", "b"}),
        ("x/ab", {"a", "b"}),  # only looks as if it were below x/a
        ("README", set()), ("top", {"b"}), ("unheard-of", {"a", "b"}), ("x", {"a", "b"}),
    ],
)  # fmt: skip
def test_file_belongs_to_those_that_name_it_and_else_to_all(path: str, names: set[str]) -> None:
    assert belong(TWO, path) == names


@settings(max_examples=25)
@given(st.sampled_from(sorted(FILES)), st.text("0123456789abcdef", min_size=8))
def test_each_file_of_the_repository_changes_its_groups_and_no_other(path: str, new: str) -> None:
    groups = read_groups()
    before, after = digest_contents(groups, FILES), digest_contents(groups, FILES | {path: new})
    changed = {name for name in before if before[name] != after[name]}
    expected = {g.name for g in groups.all} if path in LOCKS else belong(groups, path)
    assert changed == expected


@given(st.text("abcdefgh/_.", min_size=1, max_size=20))
def test_new_file_that_nobody_names_belongs_to_all(name: str) -> None:
    path = f"orchestrator/bench/{name}"
    groups = read_groups()
    named = {place for g in groups.all for place in g.depends}
    if not any(path == place or path.startswith(f"{place}/") for place in named):
        assert belong(groups, path) == {g.name for g in groups.all}


def test_all_that_groups_name_is_there() -> None:
    groups = read_groups()
    for place in {*groups.landing, *(p for g in groups.all for p in g.depends)}:
        assert (ROOT / place).exists(), place
    assert {name for g in groups.all for name in g.versions} <= VERSIONS.keys()


def test_each_test_with_machines_is_in_one_group() -> None:
    found = (path for lane in ("lab", "faults") for path in ROOT.glob(f"tests/{lane}/test_*.py"))
    there = {path.relative_to(ROOT).as_posix() for path in found}
    assert {test for g in read_groups().all for test in g.tests} == there


def test_groups_have_full_tests_when_a_file_of_theirs_marks_one(tmp_path: Path) -> None:
    for name, text in (("a", "@pytest.mark.full\n"), ("b", "")):
        place = tmp_path / f"tests/lab/test_{name}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    assert [g.name for g in find_groups_with_full_tests(TWO, tmp_path)] == ["a"]


def test_groups_of_one_process_run_together() -> None:
    groups = Groups(
        (group("a", process="p"), group("b"), group("c", process="p"), group("d", process="p")),
        (),
    )
    chosen = [g for g in groups.all if g.name != "d"]
    found = groups.processes(chosen)
    assert {name: [g.name for g in members] for name, members in found.items()} == {
        "p": ["a", "c"], "b": ["b"],
    }  # fmt: skip


def test_tests_of_a_group_with_workers_run_side_by_side() -> None:
    apart, beside = group("a"), replace(group("b"), workers=2)
    assert "-n" not in _make_process("a", [apart], 0).arguments
    assert _make_process("b", [beside], 0).arguments[:3] == ("-v", "-n", "2")
    assert "-n" not in _make_process("p", [apart, beside], 0, full=True).arguments


def test_unknown_group_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no group 'c' .* there are a, b"):
        TWO.find("c")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('tests = ["t.py"]\ndepends = ["@nothing"]\nversions = []', "there is no set @nothing"),
        ('tests = ["t.py", "t.py"]\ndepends = []\nversions = []', "t.py is in two groups"),
    ],
)
def test_wrong_file_of_groups_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "groups.toml"
    file.write_text(f"[landing]\npaths = []\n[sets]\n[groups.a]\n{text}\n")
    with pytest.raises(ValueError, match=says):
        read_groups(file)


def test_content_is_that_of_the_work_tree_committed_or_not(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / ".gitignore").write_text("ignored\n")
    for name in ("one", "two", "ignored"):
        (tmp_path / name).write_text(name)
    before = files_in(tmp_path)
    assert set(before) == {".gitignore", "one", "two"}
    git("add", ".")
    assert files_in(tmp_path) == before
    (tmp_path / "one").chmod(0o755)
    (tmp_path / "two").unlink()
    after = files_in(tmp_path)
    assert set(after) == {".gitignore", "one"}
    assert after["one"] != before["one"]
    assert digest_of(after) != digest_of(before)
