"""Kernels as the command line spells them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import ScenarioError
from orchestrator.scenario.kernel_forms import (
    DebKernel,
    DirKernel,
    ModuleKernel,
    SourceKernel,
    TreeKernel,
)
from orchestrator.scenario.kernel_spec import EXAMPLES, add_series, parse_kernel

BASE = DebKernel(deb="linux-image-cloud-amd64", suite="trixie")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with trees, and with paths that look like a tree at a commit."""
    for name in ("linux", "a@b", "a@b/linux", "a"):
        (tmp_path / name).mkdir()
    return tmp_path


def kernel_tree(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".git").mkdir()
    for name in ("Kbuild", "Kconfig", "MAINTAINERS"):
        (folder / name).touch()
    return folder


def test_package_is_a_name_a_version_and_a_suite() -> None:
    assert parse_kernel("deb:linux-image-amd64@trixie", "--base") == DebKernel(
        deb="linux-image-amd64", suite="trixie"
    )
    assert parse_kernel("deb:linux-image-amd64=6.12.107-1@trixie", "--base") == DebKernel(
        deb="linux-image-amd64", version="6.12.107-1", suite="trixie"
    )
    assert parse_kernel("deb:linux-image-amd64=6.12.107-1", "--base") == DebKernel(
        deb="linux-image-amd64", version="6.12.107-1"
    )
    assert parse_kernel("source:linux-source@trixie-backports", "--base") == SourceKernel(
        source="linux-source", suite="trixie-backports"
    )


def test_paths_are_absolute_and_from_the_folder(here: Path) -> None:
    assert parse_kernel("dir:linux", "--base", folder=here) == DirKernel(dir=here / "linux")
    assert parse_kernel(f"tree:{here}/linux", "--base") == TreeKernel(tree=here / "linux")


@pytest.mark.parametrize(
    ("text", "tree", "ref"),
    [
        ("linux@v7.3", "linux", "v7.3"),
        ("linux@origin/HEAD~3", "linux", "origin/HEAD~3"),
        ("linux@HEAD@{1}", "linux", "HEAD@{1}"),
        ("a@b", "a", "b"),
        ("a@b/linux", "a@b/linux", None),
        ("a@b/linux@v7.3", "a@b/linux", "v7.3"),
        (".@v7.3", ".", "v7.3"),
    ],
)
def test_last_at_behind_a_path_begins_the_commit(
    here: Path, text: str, tree: str, ref: str | None
) -> None:
    if text == "a@b/linux":
        (here / "a").rmdir()
    assert parse_kernel(f"tree:{text}", "--base", folder=here) == TreeKernel(
        tree=(here / tree).resolve(), ref=ref
    )


def test_home_is_known_by_its_tilde(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert parse_kernel("tree:~/linux@v1", "--base") == TreeKernel(tree=here / "linux", ref="v1")


def test_changed_modules_are_on_top_of_the_base(here: Path) -> None:
    expected = ModuleKernel(deb=BASE.deb, suite="trixie", module=here / "linux", ref="fix")
    text = "module:linux@fix"
    assert parse_kernel(text, "--candidate", base=BASE, folder=here) == expected
    assert parse_kernel(text, "--candidate", base=expected, folder=here) == expected


@pytest.mark.parametrize("base", [None, TreeKernel(tree=Path("/linux"))])
def test_changed_modules_need_a_package(here: Path, base: TreeKernel | None) -> None:
    with pytest.raises(ScenarioError, match=r"module: .* deb:"):
        parse_kernel("module:linux", "--candidate", base=base, folder=here)


def test_bare_commit_is_of_the_kernel_tree_one_stands_in(tmp_path: Path) -> None:
    tree = kernel_tree(tmp_path / "linux")
    assert parse_kernel("v7.3", "--base", folder=tree) == TreeKernel(tree=tree, ref="v7.3")
    with pytest.raises(ScenarioError, match=str(tmp_path)):
        parse_kernel("v7.3", "--base", folder=tmp_path)
    (tree / "Kconfig").unlink()
    with pytest.raises(ScenarioError, match="names no kind"):
        parse_kernel("v7.3", "--base", folder=tree)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("debs:linux@trixie", 'did you mean "deb:"?'),
        ("git:linux", '"git:"'),
        ("deb:", "expected more, as deb:"),
        ("tree:", "expected more, as tree:"),
        ("deb:linux-image-amd64", "needs a suite or a version"),
        ("deb:linux-image-amd64@", "suite"),
        ("deb:linux-image-amd64@Trixie", "suite: String should match"),
        ("deb:@trixie", "deb: String should match"),
        ("source:linux", "needs a suite or a version"),
        ("dir:none", "/none"),
        ("tree:none@v7.3", "/none@v7.3"),
        ("tree:linux@", "@"),
        ("linux", "did you mean tree:linux, or dir:linux?"),
        ("", "is empty"),
        ("tree:~\0", "unprintable"),
        (f"tree:{'x' * 300}", f"/{'x' * 300}"),
    ],
)
def test_what_is_wrong_is_said_with_what_was_expected(
    here: Path, text: str, expected: str
) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_kernel(text, "--base", folder=here)
    assert caught.value.message.startswith("--base ")
    assert expected in caught.value.message
    assert all(example in caught.value.hint for example in EXAMPLES.values())


def test_series_is_on_top_of_what_is_there() -> None:
    tree = TreeKernel(tree=Path("/linux"), series=("a",))
    assert add_series(tree, ("b", "c"), "--series") == tree.model_copy(
        update={"series": ("a", "b", "c")}
    )
    changed = ModuleKernel(deb=BASE.deb, suite="trixie", series=("a",))
    assert add_series(BASE, ("a",), "--series") == changed
    assert add_series(changed, ("b",), "--series") == ModuleKernel(
        deb=BASE.deb, suite="trixie", series=("a", "b")
    )
    with pytest.raises(ScenarioError, match="--series: dir:/k is built already"):
        add_series(DirKernel(dir=Path("/k")), ("a",), "--series")


NAMES = st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,20}", fullmatch=True)
VERSIONS = st.none() | st.from_regex(r"[0-9][0-9A-Za-z.+~:-]{0,20}", fullmatch=True)
SUITES = st.from_regex(r"[a-z][a-z0-9-]{0,10}", fullmatch=True)


@given(st.text())
def test_any_text_is_a_kernel_or_an_error(text: str) -> None:
    with contextlib.suppress(ScenarioError):
        parse_kernel(text, "--base", base=BASE)


@given(st.sampled_from([*EXAMPLES]), st.text(alphabet="@=~/.:{}ab\ud800\0 ", max_size=12))
def test_any_text_of_a_kind_is_a_kernel_or_an_error(kind: str, text: str) -> None:
    with contextlib.suppress(ScenarioError):
        parse_kernel(f"{kind}:{text}", "--base", base=BASE)


@given(NAMES, VERSIONS, SUITES)
def test_what_a_kernel_says_of_itself_is_the_kernel(
    name: str, version: str | None, suite: str
) -> None:
    kernels: list[DebKernel | SourceKernel] = [
        DebKernel(deb=name, version=version, suite=suite),
        SourceKernel(source=name, version=version, suite=suite),
    ]
    for kernel in kernels:
        assert parse_kernel(str(kernel), "--base") == kernel


@given(st.none() | st.from_regex(r"[A-Za-z0-9~^./-]{1,20}(@\{[0-9]\})?", fullmatch=True))
def test_what_a_tree_says_of_itself_is_the_tree(ref: str | None) -> None:
    for kernel in (TreeKernel(tree=Path("/usr"), ref=ref), DirKernel(dir=Path("/usr"))):
        assert parse_kernel(str(kernel), "--base") == kernel
    module = ModuleKernel(deb=BASE.deb, suite="trixie", module=Path("/usr"), ref=ref)
    _, _, text = str(module).partition(" + ")
    assert parse_kernel(text, "--base", base=BASE) == module
