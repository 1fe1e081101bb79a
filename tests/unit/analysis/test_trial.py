from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from orchestrator.analysis.trial import TrialResult, read_result
from orchestrator.evidence.layout import TrialDir
from orchestrator.scenario.vocabulary import METRICS
from tests.unit.examples import share
from tests.unit.recorded import (
    BAR,
    FAILED,
    MEASURED,
    PAGES,
    TRACE,
    copied,
    rewrite,
    samples,
    sealed,
    snapshots,
    unpatched,
)
from tests.unit.stable import numbers_in

NEEDED = [
    "guest-0/marks.txt", "guest-0/pci.txt", "guest-1/pci.txt", "guest-1/qemu.log",
    TRACE, "host/stats-guest-1.txt", "host/profile-guest-1.txt",
    "host/clock-guest-1.txt", "map.json", "host/stats-counts.txt", "host/profile-counts.txt",
    "host/clock-counts.txt", "host/hist-lookup.txt", "host/hist-fault.txt", "host/hist-pin.txt",
    "host/hist-iova_walk.txt",
]  # fmt: skip


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    return copied(tmp_path)


def judged(trial: Path) -> TrialResult:
    return read_result(sealed(trial))


def invalid(trial: Path, reason: str) -> TrialResult:
    result = judged(trial)
    assert (result.kind, result.reason) == ("invalid", reason), result.message
    assert result.samples == {}
    assert not result.by_bench
    assert result.message
    return result


def test_recorded_trial_is_measured(trial: Path) -> None:
    result = read_result(TrialDir.open(trial))
    assert (result.kind, result.name, result.arm) == ("measured", MEASURED, "candidate")
    assert set(result.samples) == set(METRICS)
    assert result.value("pfn_lookups_per_map") == 1
    assert result.value("pfn_faults_per_map") == 1
    assert result.value("bar_maps_per_boot") == 12
    assert result.value("bar_unmaps_per_boot") == 12
    assert result.value("iova_lookups_per_unmap") == PAGES
    assert result.value("host_boot_seconds") == 6.696
    assert result.value("guest_boot_cost") == pytest.approx(25.791, abs=1e-3)
    assert len(result.samples["bar_map_cost"]) == 12
    # the last map is unmapped by the end of QEMU, not by an ioctl
    assert len(result.samples["bar_unmap_cost"]) == 11
    assert result.value("bar_map_cost_per_boot") == pytest.approx(
        sum(result.samples["bar_map_cost"])
    )


def test_repeats_within_a_trial_are_reduced_to_their_median(trial: Path) -> None:
    result = read_result(TrialDir.open(trial))
    assert result.value("bar_map_cost") == median(result.samples["bar_map_cost"])


def test_unpatched_kernel_looks_every_page_up(tmp_path: Path) -> None:
    result = read_result(unpatched(tmp_path))
    assert (result.kind, result.arm) == ("measured", "baseline")
    assert result.value("pfn_lookups_per_map") == PAGES
    assert result.value("pfn_faults_per_map") == 1
    assert result.value("bar_map_cost") == pytest.approx(0.5)
    [level] = [level for level in result.findings.levels if level.place == "full/1GiB"]
    assert [reason.name for reason in level.reasons] == ["no-series"]


def test_recorded_trial_is_mapped_at_its_best(trial: Path) -> None:
    findings = read_result(TrialDir.open(trial)).findings
    guest, host = findings.levels
    assert (guest.place, guest.leaf, guest.best) == ("guest-1", "1GiB", True)
    assert (host.place, host.leaf, host.stride, host.best) == ("full/1GiB", "1GiB", "1GiB", True)
    assert list(findings.passes) == ["counts"]
    assert (findings.traced, findings.breakdowns) == ((), ())


def test_failed_trial_is_charged_to_its_arm(tmp_path: Path) -> None:
    result = read_result(TrialDir.open(copied(tmp_path, FAILED)))
    assert (result.kind, result.arm, result.reason) == ("failed", "baseline", "guest-ended")
    assert result.stage == "guest-1-timing"
    assert result.message
    assert result.evidence
    assert not result.by_bench


def test_trial_is_invalid_when_the_bench_failed(trial: Path) -> None:
    outcome = {"kind": "invalid", "by_bench": True, "stage": "device", "reason": "device-missing",
               "message": "none", "evidence": ""}  # fmt: skip
    result = read_result(sealed(trial, outcome=outcome))
    assert (result.kind, result.reason, result.by_bench) == ("invalid", "device-missing", True)


def test_what_a_trial_left_on_its_host_is_kept_and_cut(trial: Path) -> None:
    assert judged(trial).host_left == ()
    result = read_result(sealed(trial, host_left=["mounts:  -> /mnt", "x" * 10_000]))
    assert result.kind == "measured"
    assert result.host_left[0] == "mounts:  -> /mnt"
    assert len(result.host_left[1]) < 1000


def test_trial_is_invalid_when_collecting_was_cut_short(trial: Path) -> None:
    result = read_result(sealed(trial, outcome={"kind": "unfinished"}))
    assert (result.kind, result.reason) == ("invalid", "unfinished")


@pytest.mark.parametrize("name", NEEDED)
def test_trial_is_invalid_when_evidence_changed(trial: Path, name: str) -> None:
    with (trial / name).open("a") as file:
        file.write("\n")
    result = read_result(TrialDir.open(trial))
    assert (result.kind, result.reason) == ("invalid", "evidence-changed")
    assert name in result.message


@pytest.mark.parametrize("name", NEEDED)
def test_trial_is_invalid_when_evidence_is_missing(trial: Path, name: str) -> None:
    (trial / name).unlink()
    message = invalid(trial, "missing-evidence").message
    assert name.rpartition("/")[2].removesuffix(".gz") in message


# QEMU's messages besides its trace matter only if a BAR was not mapped
@pytest.mark.parametrize("name", [name for name in NEEDED if name != "guest-1/qemu.log"])
def test_trial_is_invalid_when_evidence_is_empty(trial: Path, name: str) -> None:
    (trial / name).write_text("")
    assert judged(trial).kind == "invalid"


@share(0.4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NEEDED), st.data())
def test_evidence_cut_anywhere_never_raises(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    trial = copied(tmp_path_factory.mktemp("cut"))
    whole = (trial / name).read_bytes()
    (trial / name).write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    assert judged(trial).kind in ("measured", "invalid")


def test_trial_is_invalid_when_another_kernel_ran(trial: Path) -> None:
    result = read_result(sealed(trial, release="6.1.0"))
    assert (result.kind, result.reason) == ("invalid", "wrong-kernel")
    assert "ran 6.1.0, planned 7.3.4" in result.message


@pytest.mark.parametrize("label", ["guest-1", "counts"])
@pytest.mark.parametrize("kind", ["overrun", "commit overrun", "dropped events"])
def test_trial_is_invalid_when_trace_lost_events(trial: Path, label: str, kind: str) -> None:
    rewrite(
        trial / f"host/stats-{label}.txt",
        lambda text: re.sub(rf"(?m)^{kind}: 0", f"{kind}: 4", text, count=1),
    )
    assert "lost 4 events" in invalid(trial, "lost-events").message


@pytest.mark.parametrize("label", ["guest-1", "counts"])
def test_trial_is_invalid_when_a_probe_missed_hits(trial: Path, label: str) -> None:
    rewrite(
        trial / f"host/profile-{label}.txt",
        lambda text: re.sub(r"(?m)^(\s+\w+\s+\d+\s+)0$", r"\g<1>5", text, count=1),
    )
    assert " 5" in invalid(trial, "missed-probes").message


@pytest.mark.parametrize("label", ["guest-1", "counts"])
def test_trial_is_invalid_when_trace_clock_is_another(trial: Path, label: str) -> None:
    rewrite(
        trial / f"host/clock-{label}.txt",
        lambda text: text.replace("[mono]", "mono").replace("local", "[local]"),
    )
    invalid(trial, "wrong-clock")


def test_trial_is_invalid_when_bar_was_never_mapped(trial: Path) -> None:
    rewrite(
        trial / TRACE,
        lambda text: "".join(f"{line}\n" for line in text.splitlines() if line.startswith("#")),
    )
    evidence = invalid(trial, "bar-not-mapped").evidence
    first, *_, last = evidence.splitlines()
    assert numbers_in(first) == ["0"]
    assert "reason=shutdown" in last  # the end of QEMU's log


def test_trial_is_invalid_when_a_map_was_refused(trial: Path) -> None:
    rewrite(
        trial / TRACE,
        lambda text: re.sub(
            r"(ioctl_out.*cmd=0x3b71.*q16=0x3fff80000000 ret=)0", r"\1-12", text, count=1
        ),
    )
    assert "1 of 12 maps" in invalid(trial, "map-refused").message


def test_trial_is_invalid_when_a_map_pinned_fewer_pages(trial: Path) -> None:
    rewrite(
        trial / TRACE,
        lambda text: text.replace(f"npage={PAGES} ret={PAGES}", f"npage={PAGES} ret=512", 1),
    )
    assert "512 pages" in invalid(trial, "partial-map").message


def test_trial_is_invalid_when_qemu_saw_another_number_of_maps(trial: Path) -> None:
    rewrite(
        trial / TRACE,
        lambda text: text.replace("region_add [ram] 0x3fff80000000", "region_nop", 1),
    )
    message = invalid(trial, "maps-disagree").message
    assert numbers_in(message)[-4:] == ["0x40000000", "0x3fff80000000", "11", "12"]


def test_trial_is_invalid_when_the_kernels_tracepoint_saw_another_number(trial: Path) -> None:
    rewrite(
        trial / TRACE,
        lambda text: re.sub(r"(?m)^.* map: IOMMU: .*\n", "", text, count=1),
    )
    assert numbers_in(invalid(trial, "maps-disagree").message) == ["12", "12", "11"]


def test_trial_is_invalid_when_a_map_never_returned(trial: Path) -> None:
    def drop_last_return(text: str) -> str:
        lines = text.splitlines(keepends=True)
        last = max(i for i, line in enumerate(lines) if "ioctl_out" in line)
        return "".join(lines[:last] + lines[last + 1 :])

    rewrite(trial / TRACE, drop_last_return)
    invalid(trial, "unpaired-trace")


def test_trial_is_invalid_when_an_unmap_failed(trial: Path) -> None:
    rewrite(
        trial / TRACE,
        lambda text: re.sub(
            r"(ioctl_out.*cmd=0x3b72.*q8=0x3fff80000000.*ret=)0", r"\1-22", text, count=1
        ),
    )
    message = invalid(trial, "unmaps-disagree").message
    assert numbers_in(message) == ["12", "12", "-22", "0"]


def test_trial_is_invalid_when_an_unmap_is_missing(trial: Path) -> None:
    def without_the_last(text: str) -> str:
        lines = text.splitlines(keepends=True)
        release = max(i for i, line in enumerate(lines) if "unmap_in" in line)
        return "".join(lines[:release])

    rewrite(trial / TRACE, without_the_last)
    assert numbers_in(invalid(trial, "unmaps-disagree").message)[:2] == ["12", "11"]


def levels(trial: Path) -> dict[str, list[str]]:
    levels_of_places = judged(trial).findings.levels
    return {level.place: [reason.name for reason in level.reasons] for level in levels_of_places}


def test_guest_whose_qemu_did_not_align_is_told_so(trial: Path) -> None:
    rewrite(
        trial / TRACE,
        lambda text: text.replace("[0x7f1fc0000000]", "[0x7f1fc0201000]"),
    )
    assert levels(trial)["guest-1"] == ["misaligned", "qemu-unaligned"]
    [level] = [level for level in judged(trial).findings.levels if level.place == "guest-1"]
    assert level.leaf == "4KiB"
    assert "QEMU 10.0.13 " in level.reasons[1].text


def test_page_tables_of_a_small_bar_say_nothing(trial: Path) -> None:
    rewrite(
        trial / "guest-1/marks.txt",
        lambda text: text.replace(" tables 1347584", f" tables {1347584 + 513 * 4096}"),
    )
    assert levels(trial)["guest-1"] == []


def test_qemu_that_does_not_say_where_it_put_the_bar_has_no_level(trial: Path) -> None:
    rewrite(trial / TRACE, lambda text: text.replace(" [0x7f1fc0000000]", ""))
    assert list(levels(trial)) == ["full/1GiB"]


def test_trial_is_invalid_when_trace_is_garbled(trial: Path) -> None:
    rewrite(trial / TRACE, lambda text: text + "half a li")
    invalid(trial, "bad-trace")


@pytest.mark.parametrize("event", ["mark", "ssh", "started"])
def test_trial_is_invalid_when_the_plain_boot_has_no_mark(trial: Path, event: str) -> None:
    rewrite(
        trial / "guest-0/marks.txt",
        lambda text: re.sub(rf"(?m)^E \d+ {event}\b.*\n", "", text),
    )
    invalid(trial, "no-mark")


@pytest.mark.parametrize("index", [0, 1])
def test_trial_is_invalid_when_guest_did_not_place_the_bar(trial: Path, index: int) -> None:
    rewrite(
        trial / f"guest-{index}/pci.txt",
        lambda text: text.replace("0x00003fff80000000 0x00003fffbfffffff 0x000000000014220c",
                                  "0x0000000000000000 0x000000003fffffff 0x000000002014220c"),
    )  # fmt: skip
    assert f"guest-{index}" in invalid(trial, "bar-not-placed").message


def test_trial_is_invalid_when_the_bars_place_is_marked_unset(trial: Path) -> None:
    rewrite(
        trial / "guest-0/pci.txt",
        lambda text: text.replace("0x00003fffbfffffff 0x000000000014220c",
                                  "0x00003fffbfffffff 0x000000002014220c"),
    )  # fmt: skip
    invalid(trial, "bar-not-placed")


@pytest.mark.parametrize("count", [2, 8])
def test_trial_is_invalid_when_one_of_several_bars_has_no_place(trial: Path, count: int) -> None:
    """A guest of 36 bits with two BARs of 32 GiB has room for one."""

    def others(text: str) -> str:
        block = re.search(r"(?m)^device 0000:01:00.0 (0x1af4 0x1110) $", text)
        assert block
        lost = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n" * 6
        return text + "".join(
            f"device 0000:{bus:02x}:00.0 {block[1]} \n{lost}" for bus in range(2, count + 1)
        )

    manifest = json.loads((trial / "manifest.json").read_text())
    manifest["device_count"] = count
    (trial / "manifest.json").write_text(json.dumps(manifest))
    rewrite(trial / "guest-0/pci.txt", others)
    message = invalid(trial, "bar-not-placed").message
    assert f"1 of {count} BARs" in message
    assert "0000:02:00.0" in message
    assert "0000:01:00.0" not in message


def dropped(text: str) -> str:
    more = re.sub(r"Hits: (\d+)", lambda m: f"Hits: {int(m[1]) + 3}", text)
    return more.replace("Dropped: 0", "Dropped: 3")


def test_trial_is_invalid_when_a_histogram_dropped_hits(trial: Path) -> None:
    rewrite(trial / "host/hist-iova_walk.txt", dropped)
    assert "dropped 3 hits" in invalid(trial, "lost-events").message


def test_trial_is_invalid_when_a_snapshot_dropped_hits(trial: Path) -> None:
    snapshots(trial, iova_walk=dropped)
    assert "'iova_walk': 3" in invalid(trial, "lost-events").message


def test_trial_is_invalid_when_histogram_and_probe_disagree(trial: Path) -> None:
    rewrite(
        trial / "host/profile-counts.txt",
        lambda text: re.sub(r"(lookup\s+)2\b", r"\g<1>3", text),
    )
    assert numbers_in(invalid(trial, "counts-disagree").message)[-2:] == ["2", "3"]


@pytest.mark.parametrize("name", ["lookup", "pin"])
def test_trial_is_invalid_when_pages_of_a_map_do_not_add_up(trial: Path, name: str) -> None:
    snapshots(trial, **{name: lambda text: text.replace("ret:     262144", "ret: 262143")})
    assert "262143" in invalid(trial, "counts-disagree").message


def answer(trial: Path, change: Callable[[dict[str, Any]], object]) -> None:
    def changed(text: str) -> str:
        whole = json.loads(text)
        change(whole)
        return json.dumps(whole)

    rewrite(trial / "map.json", changed)


def test_trial_is_invalid_when_another_bar_was_mapped(trial: Path) -> None:
    answer(trial, lambda whole: whole["passes"]["counts"].update(bar_bytes=BAR // 2))
    message = invalid(trial, "wrong-bar").message
    assert numbers_in(message)[-2:] == [str(BAR // 2), str(BAR)]


def test_trial_is_invalid_when_the_map_has_no_samples(trial: Path) -> None:
    answer(trial, lambda whole: whole["passes"]["counts"]["points"].pop())
    invalid(trial, "missing-evidence")


def test_trial_is_invalid_when_a_sample_has_no_histograms(trial: Path) -> None:
    answer(trial, lambda whole: samples(whole)[-1].pop("snapshots"))
    invalid(trial, "missing-evidence")


@pytest.mark.parametrize("key", ["state", "map_ns", "minor_faults", "unmapped_bytes"])
def test_trial_is_invalid_when_a_sample_is_not_whole(trial: Path, key: str) -> None:
    answer(trial, lambda whole: samples(whole)[-1].pop(key))
    message = invalid(trial, "bad-evidence").message
    assert "map.json" in message
    assert f"passes.counts.points.1.samples.0.{key}" in message


def test_trial_is_invalid_when_a_pass_is_missing(trial: Path) -> None:
    answer(trial, lambda whole: whole["passes"].clear())
    invalid(trial, "bad-evidence")


def test_trial_is_invalid_when_the_map_is_no_json(trial: Path) -> None:
    (trial / "map.json").write_text("{")
    invalid(trial, "bad-evidence")


def test_trial_is_invalid_when_an_unmap_was_partial(trial: Path) -> None:
    answer(trial, lambda whole: samples(whole)[-1].update(unmapped_bytes=4096))
    assert "4096" in numbers_in(invalid(trial, "counts-disagree").message)


def test_trial_is_invalid_when_the_thread_saw_other_faults(trial: Path) -> None:
    answer(trial, lambda whole: samples(whole)[-1].update(minor_faults=3))
    assert "3" in numbers_in(invalid(trial, "counts-disagree").message)


def test_faults_that_mapped_nothing_are_not_counted(trial: Path) -> None:
    def fell_back(text: str) -> str:
        match = re.search(r"(?s)\{ order: +18, ret: 100 \}.*Hits: (\d)", text)
        assert match is not None
        row = "{ order:         18, ret: 800 } hitcount:          4\n"
        more = match[0].replace(f"Hits: {match[1]}", f"Hits: {int(match[1]) + 4}")
        return text.replace(match[0], row + more)

    rewrite(trial / "host/hist-fault.txt", fell_back)
    snapshots(trial, fault=fell_back)
    rewrite(
        trial / "host/profile-counts.txt", lambda text: re.sub(r"(fault\s+)2\b", r"\g<1>6", text)
    )
    assert judged(trial).value("pfn_faults_per_map") == 1


def test_only_the_passes_that_ran_are_judged(trial: Path) -> None:
    for name in (trial / "host").glob("*-counts.txt"):
        name.unlink()
    (trial / "map.json").unlink()
    result = read_result(sealed(trial, passes=["plain", "timing"]))
    assert result.kind == "measured"
    assert result.value("pfn_lookups_per_map") is None
    assert result.value("bar_maps_per_boot") == 12


def test_times_of_the_traced_boot_are_no_headline(trial: Path) -> None:
    guests = [{"index": 1, "pass": "timing", "memory": 512 << 20}]
    result = read_result(sealed(trial, guests=guests, passes=["timing"]))
    assert result.kind == "measured"
    assert result.value("guest_boot_cost") is None


@pytest.mark.parametrize(
    ("facts", "has_boot"),
    [({}, True), ({"host_kind": "nested"}, True), ({"host_kind": "metal"}, False)],
)
def test_boot_of_a_metal_host_is_no_metric(
    trial: Path, facts: dict[str, str], has_boot: bool
) -> None:
    """It is a boot by kexec, which trials share. Older evidence has no kind of host."""
    manifest = json.loads((trial / "manifest.json").read_text())
    if not has_boot:
        del manifest["host_boot_seconds"]
    (trial / "manifest.json").write_text(json.dumps(manifest))
    result = read_result(sealed(trial, **facts))
    assert result.kind == "measured", result.message
    assert ("host_boot_seconds" in result.samples) == has_boot
    assert result.samples["guest_boot_cost"]


def test_boot_that_trials_share_is_no_metric(trial: Path) -> None:
    manifest = json.loads((trial / "manifest.json").read_text())
    del manifest["host_boot_seconds"]
    (trial / "manifest.json").write_text(json.dumps(manifest))
    result = read_result(sealed(trial, host_kind="nested", host_session_seconds=6.7))
    assert result.kind == "measured", result.message
    assert "host_boot_seconds" not in result.samples
    assert result.samples["guest_boot_cost"]


def test_nested_host_without_its_boot_is_bad_evidence(trial: Path) -> None:
    manifest = json.loads((trial / "manifest.json").read_text())
    del manifest["host_boot_seconds"]
    (trial / "manifest.json").write_text(json.dumps(manifest))
    assert "host_boot_seconds" in invalid(trial, "missing-evidence").message
