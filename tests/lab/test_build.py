"""Kernels, really built from source: the build root, the configuration, the series, the proof."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cache import Cache, remove_tree
from orchestrator.errors import ScenarioError
from orchestrator.kernels import KernelBundle, checked, materialised
from orchestrator.kernels.config import parsed
from orchestrator.progress import Progress
from orchestrator.scenario import SourceKernel

pytestmark = [pytest.mark.build, pytest.mark.timeout(3600)]

SERIES = Path(__file__).parents[2] / "fixtures/series"


def kernel(*series: str, config: tuple[str, ...] = ()) -> SourceKernel:
    return SourceKernel(
        source="linux-source-7.3", suite="trixie-backports",
        series=tuple(str(SERIES / one) for one in series), config=config,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cache() -> Cache:
    return Cache()


@pytest.fixture(scope="module")
def base(cache: Cache) -> KernelBundle:
    return materialised(kernel(), cache, Progress(), "base")


def test_host_kernel_has_all_that_it_needs_built_in(base: KernelBundle) -> None:
    assert base.release.startswith("7.3.")
    assert "-base-" in base.release
    needed = ["virtio_blk", "ext4", "overlay", "virtio_net", "vfio_pci", "vfio_iommu_type1"]
    assert base.module_closure([*needed, "kvm_amd", "kvm_intel"]) == []
    assert base.config is not None
    config = parsed(base.config.read_text())
    assert config["ARCH_SUPPORTS_PUD_PFNMAP"] == "y"
    assert [name for name, value in config.items() if value == "m"] == []


def test_series_makes_another_kernel_and_the_base_comes_back(
    base: KernelBundle, cache: Cache
) -> None:
    one = kernel("placebo")
    checked(one, cache)
    found = materialised(one, cache, Progress(), "cand")
    name, _, content = found.release.rpartition("-cand-")
    assert base.release.rpartition("-base-")[0] == name
    assert len(found.release) == len(base.release)
    assert content != base.release.rpartition("-")[2]
    assert found.provenance["base_built"] == base.provenance["built"]
    assert found.provenance["config"] == base.provenance["config"]
    assert found.provenance["compiler"] == base.provenance["compiler"]
    assert [patch["subject"] for patch in found.provenance["series"]] == [
        "vfio/type1: Rename a local variable"
    ]
    logs = {p: p.stat().st_mtime_ns for p in cache.folder("build-logs").iterdir()}
    assert materialised(one, cache, Progress(), "cand") == found
    assert {p: p.stat().st_mtime_ns for p in cache.folder("build-logs").iterdir()} == logs


def test_compiler_says_why_it_does_not_build(base: KernelBundle, cache: Cache) -> None:
    one = kernel("bad/does-not-compile.patch")
    checked(one, cache)  # it applies
    with pytest.raises(ScenarioError) as caught:
        materialised(one, cache, Progress(), "cand")
    assert caught.value.reason == "build-failed"
    assert "vfio_iommu_type1.c" in caught.value.evidence
    assert "error:" in caught.value.evidence
    log = Path(caught.value.hint.removeprefix("the whole log: "))
    assert "error:" in log.read_text()


def test_series_that_does_not_apply_is_refused_before_anything_is_built(cache: Cache) -> None:
    with pytest.raises(ScenarioError) as caught:
        checked(kernel("bad/does-not-apply.patch"), cache)
    assert caught.value.reason == "series-does-not-apply"
    assert "drivers/vfio/vfio_iommu_type1.c" in str(caught.value)


def test_option_that_does_not_come_out_is_named_before_anything_is_built(cache: Cache) -> None:
    with pytest.raises(ScenarioError) as caught:
        checked(kernel(config=("CONFIG_NO_SUCH_OPTION=y",)), cache)
    assert caught.value.reason == "config"
    assert caught.value.evidence == "CONFIG_NO_SUCH_OPTION: asked y (config), got n"


def test_kernel_before_the_series_can_be_configured(cache: Cache) -> None:
    checked(SourceKernel(source="linux-source-6.12", suite="trixie"), cache)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_goes_on_when_the_runner_ends(
    base: KernelBundle, cache: Cache, tmp_path: Path, number: signal.Signals
) -> None:
    script = (
        "import sys; from orchestrator.cache import Cache;"
        "from orchestrator.kernels import materialised;"
        "from orchestrator.progress import Progress;"
        "from orchestrator.scenario import SourceKernel;"
        "kernel = SourceKernel.model_validate_json(sys.argv[1]);"
        "materialised(kernel, Cache(), Progress(), sys.argv[2])"
    )
    interrupted, tag = kernel("slower-map"), secrets.token_hex(2)  # built by no run before
    asked = [interrupted.model_dump_json(), tag]
    said = tmp_path / "stderr"
    with said.open("w") as file:
        runner = subprocess.Popen([sys.executable, "-c", script, *asked], stderr=file)
    try:
        deadline = time.monotonic() + 120
        while not builders():
            assert runner.poll() is None, said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        runner.send_signal(number)
        runner.wait(60)
    finally:
        runner.kill()
        runner.wait()
    deadline = time.monotonic() + 10
    while builders() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert builders() == []
    # what it left half done does not reach the next build
    found = materialised(interrupted, cache, Progress(), tag)
    assert found.provenance["base_built"] == base.provenance["built"]
    remove_tree(found.vmlinuz.parent)


def builders() -> list[str]:
    """Processes of this machine that see a build root's /build."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mounts = (folder / "mountinfo").read_text()
        except OSError:
            continue
        if " /build " in mounts and folder.name != str(os.getpid()):
            found.append(folder.name)
    return found
