from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.base.hashing import digest_of
from orchestrator.base.reasons import Reason
from orchestrator.kernels.module import rebuild
from orchestrator.kernels.module.rebuild import _Changed, _exports, _own_files, _parts, _patched
from orchestrator.kernels.series.series import read_series
from orchestrator.scenario.kernel_forms import ModuleKernel
from tests.unit.kernels.repositories import commit, new_repository
from tests.unit.kernels.trees import tree_in

PATCH = """\
Subject: [PATCH] One line more

--- a/drivers/vfio/vfio.h
+++ b/drivers/vfio/vfio.h
@@ -1,2 +1,3 @@
 one
+between
 two
--- /dev/null
+++ b/drivers/vfio/new.h
@@ -0,0 +1 @@
+new
--- a/drivers/vfio/old.h
+++ /dev/null
@@ -1 +0,0 @@
-old
"""


def kernel(**keys: object) -> ModuleKernel:
    return ModuleKernel.model_validate({"deb": "linux-image-amd64", "suite": "trixie", **keys})


def test_a_series_is_applied_to_files_alone(tmp_path: Path) -> None:
    (tmp_path / "one.patch").write_text(PATCH)
    patches = read_series([str(tmp_path / "one.patch")], None, Cache(tmp_path / "cache"))
    files = {
        "drivers/vfio/vfio.h": b"one\ntwo\n",
        "drivers/vfio/old.h": b"old\n",
        "drivers/vfio/other.c": b"no \xff text",
        "drivers/vfio/new.h": None,
    }
    assert _patched(files, patches) == {
        "drivers/vfio/vfio.h": b"one\nbetween\ntwo\n",
        "drivers/vfio/old.h": None,
        "drivers/vfio/other.c": b"no \xff text",
        "drivers/vfio/new.h": b"new\n",
    }
    with pytest.raises(ScenarioError, match=r"drivers/vfio/vfio\.h") as caught:
        _patched({**files, "drivers/vfio/vfio.h": b"two\n"}, patches)
    assert caught.value.reason == Reason.SERIES_DOES_NOT_APPLY


def test_the_digest_is_of_what_is_changed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    source = tmp_path / "mine/drivers/vfio/vfio.h"
    source.parent.mkdir(parents=True)
    (tmp_path / "one.patch").write_text(PATCH)

    def digest(text: str, *series: str) -> str:
        source.write_text(text)
        spec = kernel(module=tmp_path / "mine", series=[str(tmp_path / s) for s in series])
        return _Changed(spec, cache).digest

    first = digest("one\n")
    assert first == digest("one\n")
    assert len({first, digest("two\n"), digest("one\n", "one.patch")}) == 3
    # the commit message does not count
    (tmp_path / "two.patch").write_text(PATCH.replace("One line more", "More"))
    assert digest("one\n", "two.patch") == digest("one\n", "one.patch")
    assert len(first) == len(digest_of({}))


def test_a_commit_of_a_repository(tmp_path: Path) -> None:
    repository = new_repository(tmp_path / "mine", {"drivers/vfio/vfio.h": "first\n"})
    commit(repository, "second", {"drivers/vfio/vfio.h": "second\n", "drivers/vfio/a.c": "a\n"})
    (repository / "drivers/vfio/vfio.h").write_text("not committed\n")
    files = {
        ref: _own_files(kernel(module=repository, **({"ref": ref} if ref else {})))
        for ref in ("HEAD~1", "main", "")
    }
    assert files["HEAD~1"] == {"drivers/vfio/vfio.h": b"first\n"}
    assert files["main"] == {"drivers/vfio/vfio.h": b"second\n", "drivers/vfio/a.c": b"a\n"}
    assert files[""]["drivers/vfio/vfio.h"] == b"not committed\n"
    with pytest.raises(ScenarioError, match='"maim"') as caught:
        _own_files(kernel(module=repository, ref="maim"))
    assert caught.value.reason == Reason.NO_SUCH_REF


def test_only_what_the_package_has_is_unpacked(tmp_path: Path) -> None:
    paths = ["drivers/vfio/new.c", "MAINTAINERS", "Documentation/new.rst", "mine/Makefile"]
    assert _parts(paths, tree_in(tmp_path)) == {"drivers/vfio", "MAINTAINERS"}


WHOLE = {"MAINTAINERS": "", "kernel/fork.c": "", "drivers/vfio/vfio.h": ""}


@pytest.mark.parametrize("ref", [None, "main"])
def test_a_whole_kernel_is_no_module(tmp_path: Path, ref: str | None) -> None:
    repository = new_repository(tmp_path / "linux", WHOLE)
    with pytest.raises(ScenarioError) as caught:
        _own_files(kernel(module=repository, ref=ref))
    assert caught.value.reason == Reason.WHOLE_KERNEL
    assert "series" in caught.value.hint


def test_a_range_is_of_the_whole_kernel_beside_it(tmp_path: Path) -> None:
    repository = new_repository(tmp_path / "linux", WHOLE)
    commit(repository, "a fix", {"drivers/vfio/vfio.h": "fixed\n"})
    changed = _Changed(kernel(module=repository, series=["HEAD~1..HEAD"]), Cache(tmp_path / "c"))
    assert changed.own == {}
    assert [patch.subject for patch in changed.patches] == ["a fix"]


@pytest.mark.parametrize(("name", "reason"), [("none", "no-such-folder"), ("empty", "no-sources")])
def test_a_folder_without_sources(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty/drivers").mkdir(parents=True)
    (tmp_path / "empty/drivers/notes.txt").write_text("")
    with pytest.raises(ScenarioError) as caught:
        _own_files(kernel(module=tmp_path / name))
    assert caught.value.reason == reason
    assert str(tmp_path / name) in caught.value.message


def test_exports_are_those_of_the_modules(tmp_path: Path) -> None:
    symvers = tmp_path / "Module.symvers"
    symvers.write_text(
        "0x1\tvfio_a\tdrivers/vfio/vfio\tEXPORT_SYMBOL_GPL\t\n"
        "0x2\tvfio_b\t/build/tree/drivers/vfio/vfio\tEXPORT_SYMBOL\tNS\n"
        "0x3\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n"
    )
    assert _exports(symvers, ["drivers/vfio/vfio"]) == {
        "vfio_a": ("0x1", "EXPORT_SYMBOL_GPL"),
        "vfio_b": ("0x2", "EXPORT_SYMBOL"),
    }


def test_names_are_those_of_sysfs() -> None:
    assert rebuild._name("drivers/vfio/pci/vfio-pci-core") == "vfio_pci_core"
