"""Every reason for a mapping level that is not the best, provoked on a real host and named.
Reasons that need the same kernel, a patched one or 6.12, share a host."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.analysis.maps.level import Level
from orchestrator.analysis.maps.theory import count_pages
from orchestrator.base.cache import Cache
from orchestrator.base.progress import Progress
from orchestrator.formats.units import GIB
from orchestrator.kernels import materialise_kernel
from orchestrator.scenario.kernel_forms import DebKernel
from tests.lab.conftest import Outcome, RunOne

pytestmark = pytest.mark.vm

PATCHED = 'arms.baseline.kernel={deb="linux-image-cloud-amd64", suite="trixie-backports"}'
BEFORE_HUGE_PFNMAP = 'arms.baseline.kernel={deb="linux-image-cloud-amd64", suite="bookworm"}'
MAP = ("workload=map", "host.accel=tcg", "device.bar=1GiB", 'trace.passes=["counts"]')
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
DISABLE = "/sys/module/vfio_iommu_type1/parameters/disable_hugepages"


def sysfs(path: str, value: str) -> str:
    return f'arms.baseline.sysfs={{"{path}" = "{value}"}}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, means: None) -> Path:
    """The 6.12 kernel in a folder, as if a user had built it."""
    package = materialise_kernel(
        DebKernel(deb="linux-image-cloud-amd64", suite="trixie"), Cache(), Progress()
    )
    folder = tmp_path_factory.mktemp("kernel")
    shutil.copytree(package.modules, folder / "lib/modules" / package.release, symlinks=True)
    shutil.copy2(package.vmlinuz, folder / "vmlinuz")
    return folder


def levels(outcome: Outcome) -> dict[str, Level]:
    assert outcome.result.kind == "measured", outcome.result
    return {level.place: level for level in outcome.result.findings.levels}


def reasons(level: Level) -> list[str]:
    return [reason.name for reason in level.reasons]


def test_alignment_and_size_decide_on_a_patched_kernel(shared_trial: RunOne) -> None:
    found = levels(
        shared_trial(*MAP, PATCHED, 'map.sizes=["512MiB", "full"]',
                     'map.alignment=["1GiB", "2MiB", "4KiB"]')
    )  # fmt: skip
    best = found["full/1GiB"]
    assert (best.leaf, best.stride, best.best) == ("1GiB", "1GiB", True)
    off = found["full/2MiB"]
    assert (off.leaf, off.stride, reasons(off)) == ("2MiB", "2MiB", ["misaligned"])
    assert "2 MiB off" in off.reasons[0].text
    far = found["full/4KiB"]
    assert (far.leaf, far.stride, reasons(far)) == ("4KiB", "4KiB", ["misaligned"])
    assert "4 KiB off" in far.reasons[0].text
    small = found["512MiB/1GiB"]
    assert (small.leaf, small.stride, reasons(small)) == ("2MiB", "2MiB", ["too-small"])
    assert reasons(found["512MiB/4KiB"]) == ["too-small", "misaligned"]


@pytest.mark.parametrize(
    ("thp", "reason"), [("disable", "thp-prctl"), ("nohugepage", "thp-madvise")]
)
def test_a_process_without_huge_pages_is_named(
    shared_trial: RunOne, thp: str, reason: str
) -> None:
    level = levels(shared_trial(*MAP, PATCHED, f"map.thp={thp}"))["full/1GiB"]
    assert (level.leaf, reasons(level)) == ("4KiB", [reason])


def test_the_hosts_policy_is_no_reason_where_the_kernel_ignores_it(shared_trial: RunOne) -> None:
    # kernels since v7.2 at the latest do not apply it to huge pfnmaps
    outcome = shared_trial(*MAP, PATCHED, sysfs(THP, "never"))
    assert levels(outcome)["full/1GiB"].best
    facts = outcome.evidence.host_facts()
    assert facts is not None
    assert facts.settings["transparent_hugepage"] == "always madvise [never]"


def test_disabled_hugepages_of_type1_are_named(shared_trial: RunOne) -> None:
    level = levels(shared_trial(*MAP, PATCHED, sysfs(DISABLE, "Y")))
    assert reasons(level["full/1GiB"]) == ["disable-hugepages"]
    assert level["full/1GiB"].leaf == "1GiB"


def test_a_setting_of_one_trial_is_not_the_next_ones(shared_trial: RunOne) -> None:
    """The settings of the two tests before this one are put back, on one host without a reboot."""
    first = shared_trial(*MAP, PATCHED, sysfs(DISABLE, "Y"))
    second = shared_trial(*MAP, PATCHED)
    assert [levels(outcome)["full/1GiB"].best for outcome in (first, second)] == [False, True]
    boots = [outcome.evidence.manifest.boot_id for outcome in (first, second)]
    assert boots[0] == boots[1]


def test_a_kernel_from_a_folder_without_the_series_is_measured_and_named(
    shared_trial: RunOne, folder: Path
) -> None:
    outcome = shared_trial(*MAP, f"arms.baseline.kernel={{dir = '{folder}'}}")
    level = levels(outcome)["full/1GiB"]
    assert (level.leaf, level.stride, reasons(level)) == ("1GiB", "4KiB", ["no-series"])
    assert outcome.evidence.manifest.kernel.source == f"dir:{folder}"
    assert outcome.result.value("pfn_lookups_per_map") == count_pages(GIB)


def test_the_hosts_policy_is_named_where_the_kernel_applies_it(
    shared_trial: RunOne, folder: Path
) -> None:
    # v6.12 applies it, in its stable releases up to 6.12.107 at least; 6.12.117 does not
    kernel = f"arms.baseline.kernel={{dir = '{folder}'}}"
    level = levels(shared_trial(*MAP, kernel, sysfs(THP, "never")))["full/1GiB"]
    expected: dict[str | None, list[str]] = {"4KiB": ["thp-sysfs"], "1GiB": ["no-series"]}
    assert reasons(level) == expected[level.leaf]


def test_a_kernel_without_huge_pfnmap_is_named(one_trial: RunOne) -> None:
    level = levels(one_trial(*MAP, BEFORE_HUGE_PFNMAP))["full/1GiB"]
    assert (level.leaf, level.stride, reasons(level)) == ("4KiB", "4KiB", ["no-huge-pfnmap"])


@pytest.mark.full
def test_an_iommu_without_superpages_is_named(one_trial: RunOne) -> None:
    level = levels(one_trial(*MAP, PATCHED, "host.cmdline=intel_iommu=sp_off"))["full/1GiB"]
    assert (level.leaf, level.iommu, reasons(level)) == ("1GiB", "4KiB", ["iommu-no-superpages"])
    assert "sp_off" in level.reasons[0].text


@pytest.mark.full
def test_a_qemu_that_does_not_align_is_named(one_trial: RunOne) -> None:
    # Debian 12's QEMU 7.2 uses the address that the kernel returns
    outcome = one_trial(
        "host.suite=bookworm", "device.bar=1GiB", 'trace.passes=["timing"]', PATCHED
    )
    level = levels(outcome)["guest-0"]
    # one time in several, that address fits by chance
    assert ("qemu-unaligned" in reasons(level)) == (level.leaf != "1GiB")
