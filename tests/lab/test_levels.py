"""Every reason for a mapping level that is not the best, provoked on a real host and named."""

from __future__ import annotations

import pytest

from orchestrator.analysis.level import Level
from tests.lab.conftest import Outcome, RunOne

pytestmark = pytest.mark.vm

PATCHED = 'arms.baseline.kernel={deb="linux-image-cloud-amd64", suite="trixie-backports"}'
BEFORE_HUGE_PFNMAP = 'arms.baseline.kernel={deb="linux-image-cloud-amd64", suite="bookworm"}'
MAP = ("workload=map", "host.accel=tcg", "device.bar=1GiB", 'trace.passes=["counts"]')


def levels(outcome: Outcome) -> dict[str, Level]:
    assert outcome.result.kind == "measured", outcome.result
    return {level.place: level for level in outcome.result.findings.levels}


def reasons(level: Level) -> list[str]:
    return [reason.name for reason in level.reasons]


def test_alignment_and_size_decide_on_a_patched_kernel(one_trial: RunOne) -> None:
    found = levels(
        one_trial(*MAP, PATCHED, 'map.sizes=["512MiB", "full"]',
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


def test_a_kernel_without_the_series_is_named(one_trial: RunOne) -> None:
    level = levels(one_trial(*MAP))["full/1GiB"]
    assert (level.leaf, level.stride, reasons(level)) == ("1GiB", "4KiB", ["no-series"])


def test_a_kernel_without_huge_pfnmap_is_named(one_trial: RunOne) -> None:
    level = levels(one_trial(*MAP, BEFORE_HUGE_PFNMAP))["full/1GiB"]
    assert (level.leaf, level.stride, reasons(level)) == ("4KiB", "4KiB", ["no-huge-pfnmap"])


@pytest.mark.parametrize(
    ("thp", "reason"), [("disable", "thp-prctl"), ("nohugepage", "thp-madvise")]
)
def test_a_process_without_huge_pages_is_named(one_trial: RunOne, thp: str, reason: str) -> None:
    level = levels(one_trial(*MAP, PATCHED, f"map.thp={thp}"))["full/1GiB"]
    assert (level.leaf, reasons(level)) == ("4KiB", [reason])


def test_the_hosts_policy_is_named_where_the_kernel_applies_it(one_trial: RunOne) -> None:
    # v6.12 did, of its stable releases those up to 6.12.107 at least; 6.12.117 does not
    level = levels(one_trial(*MAP, "host.cmdline=transparent_hugepage=never"))["full/1GiB"]
    expected: dict[str | None, list[str]] = {"4KiB": ["thp-sysfs"], "1GiB": ["no-series"]}
    assert reasons(level) == expected[level.leaf]


def test_the_hosts_policy_is_no_reason_where_the_kernel_ignores_it(one_trial: RunOne) -> None:
    # kernels since v7.2 at the latest do not apply it to huge pfnmaps
    level = levels(one_trial(*MAP, PATCHED, "host.cmdline=transparent_hugepage=never"))
    assert level["full/1GiB"].best


def test_disabled_hugepages_of_type1_are_named(one_trial: RunOne) -> None:
    level = levels(one_trial(*MAP, PATCHED, "host.cmdline=vfio_iommu_type1.disable_hugepages=1"))
    assert reasons(level["full/1GiB"]) == ["disable-hugepages"]
    assert level["full/1GiB"].leaf == "1GiB"


def test_an_iommu_without_superpages_is_named(one_trial: RunOne) -> None:
    level = levels(one_trial(*MAP, PATCHED, "host.cmdline=intel_iommu=sp_off"))["full/1GiB"]
    assert (level.leaf, level.iommu, reasons(level)) == ("1GiB", "4KiB", ["iommu-no-superpages"])
    assert "sp_off" in level.reasons[0].text


def test_a_qemu_that_does_not_align_is_named(one_trial: RunOne) -> None:
    # Debian 12's QEMU 7.2 takes the address that the kernel gives
    outcome = one_trial(
        "host.suite=bookworm", "device.bar=1GiB", 'trace.passes=["timing"]', PATCHED
    )
    level = levels(outcome)["guest-0"]
    # by chance, one time in several, that address fits
    assert ("qemu-unaligned" in reasons(level)) == (level.leaf != "1GiB")
