"""Modules of Debian's kernels, really rebuilt: the build root, the headers, the source."""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.progress import Progress
from orchestrator.kernels import KernelBundle, check_kernel, materialise_kernel
from orchestrator.kernels.debian import package
from orchestrator.kernels.image.ko import read_module
from orchestrator.kernels.source.debsource import DebSource, find_package_source
from orchestrator.scenario.kernel_forms import ModuleKernel

pytestmark = pytest.mark.build

SERIES = Path(__file__).parents[2] / "fixtures/series"
TYPE1 = "drivers/vfio/vfio_iommu_type1"
PLACE = f"kernel/{TYPE1}.ko.xz"


@pytest.fixture(scope="module")
def cache() -> Cache:
    return Cache()


def kernel(*series: str, suite: str = "trixie-backports", **keys: object) -> ModuleKernel:
    return ModuleKernel.model_validate(
        {"deb": "linux-image-cloud-amd64", "suite": suite,
         "series": [str(SERIES / one) for one in series], **keys}
    )  # fmt: skip


def built(one: ModuleKernel, cache: Cache) -> KernelBundle:
    check_kernel(one, cache)
    return materialise_kernel(one, cache, Progress())


def made_of(bundle: KernelBundle) -> dict[str, Any]:
    """Return a kernel's provenance, as plan.json has it."""
    return bundle.provenance.to_json()


def digests(modules: Path) -> dict[str, str]:
    return {
        p.relative_to(modules).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in modules.rglob("*.ko*")
    }


def in_folder(folder: Path, source: DebSource, name: str, text: str) -> Path:
    """Make a folder with one of the package's files, with `text` appended."""
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    room = str(Path(name).parent)
    place.write_text((source.tree([room]) / name).read_text() + text)
    return folder


def test_a_parameter_more(cache: Cache) -> None:
    one = kernel("stride-clamp")
    found, stock = built(one, cache), package.unpack_kernel(one.package, cache)
    assert found.release == stock.release
    assert found.digest != stock.digest
    assert found.vmlinuz.read_bytes() == stock.vmlinuz.read_bytes()
    # the module is in the place of the package's, packed as it is; all others are the package's
    ours, theirs = digests(found.modules), digests(stock.modules)
    assert {name for name in ours | theirs if ours.get(name) != theirs.get(name)} == {PLACE}
    assert PLACE in found.module_closure(["vfio_iommu_type1"])
    new, old = read_module(found.modules / PLACE), read_module(stock.modules / PLACE)
    assert b"pfnmap_stride" in lzma.decompress((found.modules / PLACE).read_bytes())
    assert new.info["vermagic"] == old.info["vermagic"]
    assert found.swapped == {"vfio_iommu_type1": new.srcversion}
    assert new.srcversion != old.srcversion
    # the unchanged source builds what is in the package
    facts = made_of(found)["modules"][TYPE1]
    assert facts["stock"]["srcversion"] == old.srcversion
    assert facts["stock"]["code"] == old.code_digest
    assert facts["new"]["code"] == new.code_digest != old.code_digest


@pytest.mark.full
def test_files_of_a_folder_that_are_the_packages_do_not_count(
    cache: Cache, tmp_path: Path
) -> None:
    source = find_package_source(kernel("placebo").package, cache)
    for name in ("drivers/vfio/Makefile", "include/linux/vfio.h"):
        in_folder(tmp_path, source, name, "")
    in_folder(tmp_path, source, f"{TYPE1}.c", "struct nothing;\n")
    found = built(kernel(module=tmp_path), cache)
    assert list(made_of(found)["files"]) == [f"{TYPE1}.c"]


def test_the_second_time_nothing_is_built(cache: Cache) -> None:
    one = kernel("stride-clamp")
    first = built(one, cache)
    logs = {p: p.stat().st_mtime_ns for p in cache.folder("build-logs").iterdir()}
    assert materialise_kernel(one, cache, Progress()) == first
    assert {p: p.stat().st_mtime_ns for p in cache.folder("build-logs").iterdir()} == logs


def test_a_placebo_has_the_same_code(cache: Cache) -> None:
    facts = made_of(built(kernel("placebo"), cache))["modules"][TYPE1]
    assert facts["new"]["code"] == facts["stock"]["code"]
    assert facts["new"]["srcversion"] != facts["stock"]["srcversion"]


@pytest.mark.full
@pytest.mark.parametrize("series", ["slower-map", "slower-unmap", "bad/panics.patch"])
def test_every_series_builds(cache: Cache, series: str) -> None:
    facts = made_of(built(kernel(series), cache))["modules"][TYPE1]
    assert facts["new"]["code"] != facts["stock"]["code"]


@pytest.mark.full
@pytest.mark.parametrize("suite", ["trixie", "trixie-backports"])
def test_a_private_header_of_kernels_with_and_without_modversions(
    cache: Cache, tmp_path: Path, suite: str
) -> None:
    source = find_package_source(kernel("placebo", suite=suite).package, cache)
    mine = in_folder(tmp_path, source, "drivers/vfio/vfio.h", "struct nothing;\n")
    found = built(kernel(suite=suite, module=mine), cache)
    assert {*found.swapped} == {"vfio", "vfio_iommu_type1"}
    for facts in made_of(found)["modules"].values():
        assert facts["new"]["code"] == facts["stock"]["code"]


@pytest.mark.full
def test_a_module_that_has_no_srcversion_in_the_package(cache: Cache, tmp_path: Path) -> None:
    source = find_package_source(kernel("placebo").package, cache)
    mine = in_folder(tmp_path, source, "drivers/vfio/pci/vfio_pci.c", "struct nothing;\n")
    found = built(kernel(module=mine), cache)
    assert made_of(found)["modules"]["drivers/vfio/pci/vfio-pci"]["stock"]["srcversion"] is None
    assert found.swapped["vfio_pci"]


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("include/linux/vfio.h", "beyond-modules", 'source = "linux-source-7.3"'),
        ("drivers/iommu/iommu.c", "beyond-modules", "CONFIG_IOMMU_API=y"),
        ("drivers/iommu/iommu-priv.h", "beyond-modules", "is part of drivers/iommu/"),
        ("drivers/vfio/Makefile", "beyond-modules", "says what is built"),
        ("drivers/vfio/iommufd.c", "not-compiled", "CONFIG_IOMMUFD=n"),
    ],
)
def test_what_modules_cannot_bring_is_refused(
    cache: Cache, tmp_path: Path, name: str, reason: str, words: str
) -> None:
    mine = tmp_path / "mine"
    (mine / name).parent.mkdir(parents=True)
    (mine / name).write_text("changed\n")
    (mine / "drivers/vfio").mkdir(parents=True, exist_ok=True)
    (mine / "drivers/vfio/vfio_iommu_type1.c").write_text("changed\n")
    with pytest.raises(ScenarioError) as caught:
        check_kernel(kernel(module=mine), cache)
    assert caught.value.reason == reason
    assert words in str(caught.value)


@pytest.mark.full
def test_what_leaves_the_kernel_itself_as_it_is_is_no_obstacle(
    cache: Cache, tmp_path: Path
) -> None:
    source = find_package_source(kernel("placebo").package, cache)
    for name, text in (
        ("drivers/iommu/iommu.c", "/* a comment */\n"),
        ("drivers/iommu/iommu-priv.h", "struct nothing;\n"),
        (f"{TYPE1}.c", "struct nothing;\n"),
    ):
        in_folder(tmp_path, source, name, text)
    found = built(kernel(module=tmp_path), cache)
    assert list(made_of(found)["files"]) == [f"{TYPE1}.c"]
    assert made_of(found)["passed_over"] == [
        "drivers/iommu/iommu-priv.h", "drivers/iommu/iommu.c",
    ]  # fmt: skip


@pytest.mark.full
def test_an_object_of_the_kernel_itself_that_differs_is_named(
    cache: Cache, tmp_path: Path
) -> None:
    source = find_package_source(kernel("placebo").package, cache)
    text = "int barometer_answer(void);\nint barometer_answer(void) { return 42; }\n"
    mine = in_folder(tmp_path, source, "drivers/iommu/iommu.c", text)
    with pytest.raises(ScenarioError) as caught:
        check_kernel(kernel(module=mine), cache)
    assert caught.value.reason == "beyond-modules"
    assert ".text" in caught.value.evidence


@pytest.mark.full
def test_parts_of_a_module_in_another_folder(cache: Cache, tmp_path: Path) -> None:
    source = find_package_source(kernel("placebo").package, cache)
    for name in ("virt/kvm/eventfd.c", "arch/x86/kvm/x86.c"):
        in_folder(tmp_path, source, name, "struct nothing;\n")
    check_kernel(kernel(module=tmp_path), cache)


@pytest.mark.full
def test_a_kernel_of_another_compiler_is_refused(cache: Cache) -> None:
    with pytest.raises(ScenarioError, match=r"built by gcc-12 .* 12\.2\.0, .* 14\.2\.0") as caught:
        check_kernel(kernel("placebo", suite="bookworm"), cache)
    assert caught.value.reason == "other-compiler"


@pytest.mark.full
def test_a_comment_gives_the_packages_module(cache: Cache, tmp_path: Path) -> None:
    source = find_package_source(kernel("placebo").package, cache)
    mine = in_folder(tmp_path, source, f"{TYPE1}.c", "/* a comment */\n")
    found = built(kernel(module=mine), cache)
    facts = made_of(found)["modules"][TYPE1]
    assert facts["new"]["code"] == facts["stock"]["code"]
    assert found.swapped == {"vfio_iommu_type1": facts["stock"]["srcversion"]}


@pytest.mark.full
def test_an_export_that_is_gone_breaks_other_modules(cache: Cache, tmp_path: Path) -> None:
    source = find_package_source(kernel("placebo").package, cache)
    mine = in_folder(tmp_path, source, "drivers/vfio/vfio_main.c", "")
    place = mine / "drivers/vfio/vfio_main.c"
    text = place.read_text()
    gone = "EXPORT_SYMBOL_GPL(vfio_register_group_dev);"
    assert text.count(gone) == 1
    place.write_text(text.replace(gone, ""))
    with pytest.raises(ScenarioError) as caught:
        built(kernel(module=mine), cache)
    assert caught.value.reason == "beyond-modules"
    assert "vfio_register_group_dev" in caught.value.message
    assert "vfio-pci-core" in caught.value.evidence


def test_a_series_that_does_not_apply(cache: Cache) -> None:
    with pytest.raises(ScenarioError) as caught:
        check_kernel(kernel("bad/does-not-apply.patch"), cache)
    assert caught.value.reason == "series-does-not-apply"


def test_a_series_that_does_not_compile(cache: Cache) -> None:
    one = kernel("bad/does-not-compile.patch")
    check_kernel(one, cache)
    with pytest.raises(ScenarioError) as caught:
        materialise_kernel(one, cache, Progress())
    assert caught.value.reason == "build-failed"
    assert f"{TYPE1}.c:626:" in caught.value.evidence
    assert "vfio_leaf_pages" in caught.value.evidence
    log = Path(caught.value.hint.removeprefix("the whole log: "))
    assert caught.value.evidence.splitlines()[0] in log.read_text()


def test_another_source_than_the_packages_is_refused(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof fails if the package was built from another source."""
    one = kernel("stride-clamp")
    other = kernel("placebo")
    found = built(other, cache)
    stock = package.unpack_kernel(one.package, cache)
    monkeypatch.setattr(
        "orchestrator.kernels.module.rebuild.package.unpack_kernel",
        lambda *_: replace(stock, modules=found.modules, digest=found.digest),
    )  # fmt: skip
    with pytest.raises(BenchError) as caught:
        materialise_kernel(one, cache, Progress())
    assert caught.value.reason == "pristine-differs"
    assert found.swapped["vfio_iommu_type1"] in caught.value.message
