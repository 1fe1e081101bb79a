from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.errors import ArmFailedError, BenchError, EvidenceError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import TrialWriter
from orchestrator.formats.units import GIB, MIB
from orchestrator.machine.guest import workload
from orchestrator.machine.guest.workload import (
    estimate_costs,
    find_largest,
    run_guest_boots,
    run_maps,
    settle_host,
)
from orchestrator.machine.host.device import BoundDevice
from orchestrator.machine.host.host import Host
from orchestrator.machine.tracing import probes
from orchestrator.machine.tracing.armer import ProbeSpec
from orchestrator.machine.tracing.mapagent import build_point_request, collect_answers
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import Pass
from tests.unit.answers import answer, by_1gib
from tests.unit.hosts import AgentHost, Recorded
from tests.unit.manifests import facts_of
from tests.unit.scenarios import map_scenario, scenario

MANY = ('map.sizes=["1GiB", "full"]', 'map.alignment=["4KiB", "1GiB"]')


def spoken(answered: dict[str, Any]) -> list[str]:
    """Format an answer as map.py prints it."""
    lines = [{"agent": {k: v for k, v in answered.items() if k != "points"}}]
    for point in answered["points"]:
        lines.append({"point": {k: v for k, v in point.items() if k != "samples"}})
        lines += [{"sample": sample} for sample in point["samples"]]
    return [json.dumps(line) for line in [*lines, {"end": True}]]


def test_request_has_the_states_of_a_place_together() -> None:
    chosen = map_scenario(*MANY, "map.thp=disable", "map.backend=iommufd",
                          'trace.passes=["plain"]')  # fmt: skip
    request = build_point_request(
        chosen.map, chosen.points(), 7, exact=False, snapshots={"lookup": "/x"}
    )
    assert request["points"] == [
        {"name": "1GiB/1GiB", "size": GIB, "alignment": GIB, "states": ["cold", "warm"]},
        {"name": "full/1GiB", "size": "full", "alignment": GIB, "states": ["cold", "warm"]},
        {"name": "1GiB/4KiB", "size": GIB, "alignment": 4096, "states": ["cold", "warm"]},
        {"name": "full/4KiB", "size": "full", "alignment": 4096, "states": ["cold", "warm"]},
    ]
    assert (request["backend"], request["thp"], request["repeats"]) == ("iommufd", "disable", 7)
    assert request["snapshots"] == {"lookup": "/x"}
    json.dumps(request)


@pytest.mark.parametrize(("accel", "rest"), [("kvm", 0.0), ("tcg", 0.0), ("exact", 1.0)])
def test_only_an_exact_host_is_waited_for_and_left_alone(
    shell: FakeShell, accel: str, rest: float
) -> None:
    chosen = map_scenario()
    workload._run_agent(host_of(shell, accel), DEVICE, chosen.map, chosen.points(), 1)
    [request] = shell.asked
    assert (request["rest"], request["realtime"]) == (rest, rest > 0)


def test_largest_are_the_most_at_the_best_alignment_in_every_state() -> None:
    chosen = map_scenario(*MANY)
    assert [p.name for p in find_largest(chosen.points())] == ["full/1GiB/cold", "full/1GiB/warm"]
    chosen = map_scenario('map.sizes=["4GiB", "2GiB"]', 'map.alignment=["4KiB", "2MiB"]',
                          'map.state=["warm"]')  # fmt: skip
    assert [p.name for p in find_largest(chosen.points())] == ["4GiB/2MiB/warm"]


def test_lines_of_the_agent_are_gathered() -> None:
    answered = answer(by_1gib(), counted=False)
    assert collect_answers(spoken(answered)) == answered
    assert collect_answers([*spoken(answered), "after the end"]) == answered


@pytest.mark.parametrize("cut", [0, 1, 4, -1])
def test_agent_without_its_last_word_is_the_benchs_failure(cut: int) -> None:
    with pytest.raises(BenchError, match="without its last word") as caught:
        collect_answers(spoken(answer(by_1gib()))[:cut], "x" * 2000 + "Traceback")
    assert caught.value.reason == "map-silent"
    assert caught.value.evidence.endswith("Traceback")


def test_refused_map_is_invalid_evidence_with_the_kernels_words() -> None:
    lines = [*spoken(answer(by_1gib()))[:3], json.dumps({"refused": "[Errno 14] Bad address"})]
    with pytest.raises(EvidenceError, match="Bad address") as caught:
        collect_answers(lines)
    assert caught.value.reason == "map-refused"


def test_costs_are_those_of_the_largest_point_for_the_whole_bar() -> None:
    small, large = by_1gib(GIB, map_ns=1, unmap_ns=1), by_1gib(4 * GIB, map_ns=50, unmap_ns=600)
    large["samples"][-1] |= {"map_ns": 10, "unmap_ns": 500}
    assert estimate_costs(answer(small, large), 32 * GIB) == {"map": 80, "unmap": 4000}


class FakeShell:
    """A host whose agents answer at once; its histograms are files that nobody reads."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.timeouts: list[float] = []
        self.answered: Callable[[], list[str]] = lambda: spoken(answer(by_1gib()))
        self.refusal: BenchError | None = None
        self.there: list[str] | None = None
        """Files that the host has; None: all that it is asked for."""

    def alive(self) -> bool:
        return True

    def run(self, argv: list[str] | str, *, stdin: bytes = b"", timeout: float = 120,
            check: bool = True, doing: str = "", limit: int = 0) -> Any:  # fmt: skip
        if isinstance(argv, str):
            self.ran.append(argv)
            return SimpleNamespace(stdout="", stderr="", code=0)
        name, *words = argv
        if name == "ls":
            self.ran.append(name)
            there = words if self.there is None else self.there
            return SimpleNamespace(stdout="\n".join(there), stderr="", code=0)
        self.ran.append(" ".join([name, *words[:1]]))
        said: Any = ""
        if name == "map":
            self.asked.append(json.loads(stdin))
            self.timeouts.append(timeout)
            assert stdin.endswith(b"\n")
            said = "\n".join(self.answered())
        return SimpleNamespace(stdout=said, stderr="", code=0)

    @contextlib.contextmanager
    def armed(self, shell: object, spec: ProbeSpec) -> Iterator[FakeShell]:
        assert shell is self
        if self.refusal:
            raise self.refusal
        self.ran.append(f"arm {spec.group}")
        try:
            yield self
        finally:
            self.ran.append("clear")

    def files(self) -> dict[str, str]:
        self.ran.append("files")
        return {"stats.txt": "s", "hist-lookup.txt": "h"}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> FakeShell:
    made = FakeShell()
    monkeypatch.setattr(probes, "armed_probes", made.armed)
    monkeypatch.setattr(probes, "find_functions", lambda _shell, names: [*names])
    return made


@pytest.fixture
def trial(tmp_path: Path) -> TrialWriter:
    return TrialWriter(tmp_path / "0001-baseline", facts_of())


def host_of(shell: FakeShell, accel: str = "exact") -> Host:
    return cast(Host, AgentHost(
        shell=shell, accel=accel, kvm=True, release="7.3",
        check=lambda: None, undo=lambda argv: shell.ran.append("undo " + " ".join(argv[:2])),
        change=Recorded(shell.ran),
    ))  # fmt: skip


DEVICE = cast(BoundDevice, SimpleNamespace(address="0000:01:00.0", bar_bytes=32 * GIB))


def mapped(
    shell: FakeShell, trial: TrialWriter, passes: list[Pass], *overrides: str
) -> dict[str, Any]:
    chosen = map_scenario(*overrides)
    run_maps(
        host_of(shell),
        DEVICE,
        chosen.map,
        chosen.points(),
        passes,
        trial=trial,
        progress=Progress(),
    )
    found: dict[str, Any] = json.loads((trial.path / "map.json").read_text())["passes"]
    return found


def test_plain_pass_has_every_point_and_no_tracer(shell: FakeShell, trial: TrialWriter) -> None:
    passes = mapped(shell, trial, ["plain"], *MANY, "map.repeats=5")
    assert shell.ran == ["map 0000:01:00.0"]
    [asked] = shell.asked
    assert len(asked["points"]) == 4
    assert (asked["repeats"], asked["snapshots"]) == (5, {})
    assert [p["name"] for p in passes["plain"]["points"]] == ["warm-up", "full/1GiB"]
    assert [stage.name for stage in trial.manifest.stages] == ["map-plain"]


def test_counts_pass_reads_its_histograms_after_each_sample(
    shell: FakeShell, trial: TrialWriter
) -> None:
    mapped(shell, trial, ["counts"], *MANY, "map.repeats=5")
    assert shell.ran == [
        "change: tracing barometer barocount", "arm barocount", "map 0000:01:00.0", "files",
        "clear",
    ]  # fmt: skip
    [asked] = shell.asked
    assert len(asked["points"]) == 4
    assert asked["repeats"] == 1
    assert set(asked["snapshots"]) == {"lookup", "pin", "fault", "iova_walk"}
    assert all(path.endswith("/hist") for path in asked["snapshots"].values())
    assert (trial.host / "stats-counts.txt").read_text() == "s"
    assert (trial.host / "hist-lookup.txt").read_text() == "h"


def test_timing_pass_is_one_map_of_each_state_at_the_best_place(
    shell: FakeShell, trial: TrialWriter
) -> None:
    mapped(shell, trial, ["timing"], *MANY)
    [asked] = shell.asked
    assert [p["name"] for p in asked["points"]] == ["full/1GiB"]
    assert (asked["repeats"], asked["snapshots"]) == (1, {})
    assert (trial.host / "stats-map.txt").exists()


def test_profile_takes_its_costs_from_a_pass_before_it(
    shell: FakeShell, trial: TrialWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[dict[str, float]] = []
    monkeypatch.setattr(
        workload, "log_instructions", lambda h, d, s, cost, **more: costs.append(cost)
    )
    assert set(mapped(shell, trial, ["plain", "profile"])) == {"plain"}
    assert costs == [{"map": 100_000, "unmap": 2_000_000}]
    assert len(shell.asked) == 1
    mapped(shell, trial, ["profile"])
    assert len(shell.asked) == 2
    assert costs[1] == costs[0]


def test_passes_that_are_done_are_on_disk_when_a_later_one_fails(
    shell: FakeShell, trial: TrialWriter
) -> None:
    shell.refusal = BenchError("no", evidence="no function", reason=Reason.TRACER_REFUSED)
    with pytest.raises(BenchError) as caught:
        mapped(shell, trial, ["plain", "counts"])
    assert caught.value.evidence == "no function"
    assert set(json.loads((trial.path / "map.json").read_text())["passes"]) == {"plain"}


def test_refused_map_ends_the_pass_and_leaves_no_tracer(
    shell: FakeShell, trial: TrialWriter
) -> None:
    shell.answered = lambda: [json.dumps({"refused": "Bad address"})]
    with pytest.raises(EvidenceError, match="Bad address"):
        mapped(shell, trial, ["counts"])
    assert shell.ran[-1] == "clear"


def test_more_to_map_may_take_longer(shell: FakeShell, trial: TrialWriter) -> None:
    mapped(shell, trial, ["plain"], 'map.sizes=["1GiB"]', "map.repeats=1")
    mapped(shell, trial, ["plain"], "map.repeats=1")
    assert shell.timeouts[1] - shell.timeouts[0] >= 31 * 60


def test_only_an_exact_host_settles(shell: FakeShell, trial: TrialWriter) -> None:
    chosen = map_scenario("host.settle=300")
    settle_host(host_of(shell, "tcg"), chosen.host, chosen.arms, trial=trial, progress=Progress())
    assert shell.ran == []


@pytest.mark.parametrize("seconds", [17, 0])
def test_housekeeping_of_an_exact_host_is_off_however_long_it_settles(
    shell: FakeShell, trial: TrialWriter, seconds: int
) -> None:
    chosen = map_scenario(f"host.settle={seconds}")
    settle_host(host_of(shell), chosen.host, chosen.arms, trial=trial, progress=Progress())
    written = [f"change: write {path} {v}" for path, v in workload._HOUSEKEEPING.items()]
    assert shell.ran == ["ls", *written, f"sleep {seconds}"]


def test_housekeeping_that_the_kernel_does_not_have_is_not_written(
    shell: FakeShell, trial: TrialWriter
) -> None:
    shell.there = ["/proc/sys/vm/stat_interval"]
    chosen = map_scenario("host.settle=1")
    settle_host(host_of(shell), chosen.host, chosen.arms, trial=trial, progress=Progress())
    assert shell.ran == ["ls", "change: write /proc/sys/vm/stat_interval 86400", "sleep 1"]


def test_housekeeping_that_the_kernel_refuses_is_let_be(
    shell: FakeShell, trial: TrialWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(shell)

    def refuse(*_: object) -> None:
        raise BenchError("Invalid argument", reason=Reason.SETTING_REFUSED)

    monkeypatch.setattr(host.change, "write", refuse)
    chosen = map_scenario("host.settle=1")
    settle_host(host, chosen.host, chosen.arms, trial=trial, progress=Progress())
    assert shell.ran == ["ls", "sleep 1"]


def test_housekeeping_that_an_arm_sets_is_left_to_it(shell: FakeShell, trial: TrialWriter) -> None:
    path = "/proc/sys/vm/stat_interval"
    chosen = map_scenario(f'arms.candidate.sysfs={{"{path}" = 1}}')
    settle_host(host_of(shell), chosen.host, chosen.arms, trial=trial, progress=Progress())
    assert not [said for said in shell.ran if path in said]
    assert "change: write /proc/sys/kernel/watchdog 0" in shell.ran


def booted(
    trial: TrialWriter, monkeypatch: pytest.MonkeyPatch, chosen: Scenario, passes: list[Pass]
) -> list[str]:
    """Run a guest-boot workload and return its steps by name."""
    done: list[str] = []
    monkeypatch.setattr(workload, "stage_guest", lambda *a: done.append("stage"))
    monkeypatch.setattr(
        workload, "boot_guest",
        lambda *a, index, traced, **k: done.append(f"boot {index}{' traced' * traced}"),
    )  # fmt: skip
    host = host_of(FakeShell(), "tcg")

    @contextlib.contextmanager
    def armed(
        host: Host, kind: str, label: str, bar: int, trial: TrialWriter, *, boot: bool,
        faults: bool,
    ) -> Iterator[None]:  # fmt: skip
        assert boot
        done.append(f"arm {kind} {label}{' with faults' * faults}")
        yield
        done.append("finish")

    monkeypatch.setattr(workload, "armed_tracer", armed)

    class Libvirt:
        def __enter__(self) -> Any:
            return SimpleNamespace(version=lambda: {"qemu": "10.0.2"})

        def __exit__(self, *exc: object) -> None:
            done.append("closed")

    monkeypatch.setattr(host, "libvirt", Libvirt, raising=False)
    assert chosen.guest is not None
    run_guest_boots(
        host, [DEVICE], chosen.guest, chosen.device, passes, keys=cast(RunKeys, None),
        settle=lambda: done.append("settle"), trial=trial, progress=Progress(),
    )  # fmt: skip
    return done


def test_guest_boots_once_for_each_pass(
    trial: TrialWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = booted(trial, monkeypatch, scenario(), ["plain", "timing"])
    assert done == [
        "stage", "settle", "boot 0", "arm timing guest-1", "boot 1 traced", "finish", "closed",
    ]  # fmt: skip
    assert [guest.to_json() for guest in trial.manifest.guests] == [
        {"index": 0, "pass": "plain", "memory": 512 * MIB},
        {"index": 1, "pass": "timing", "memory": 512 * MIB},
    ]
    assert trial.manifest.host_versions == {"qemu": "10.0.2"}


@pytest.mark.parametrize(
    ("qemu", "said", "large"),
    [
        ("10.0.2", "[always] madvise never\n1\n", True),
        ("9.2.0", "always [madvise] never\n1\n", True),
        ("11.0", "[always] madvise never\n1\n", True),
        ("9.1.3", "[always] madvise never\n1\n", False),
        ("8.2.0", "[always] madvise never\n1\n", False),
        ("10.0.2", "always madvise [never]\n1\n", False),
        ("10.0.2", "[always] madvise never\n0\n", False),
        ("10.0.2", "", False),
    ],
)
def test_faults_are_probed_only_where_leaves_are_large(
    shell: FakeShell, monkeypatch: pytest.MonkeyPatch, qemu: str, said: str, large: bool
) -> None:
    monkeypatch.setattr(shell, "run", lambda *a, **k: SimpleNamespace(stdout=said))
    assert workload._has_large_leaves(host_of(shell), {"qemu": qemu}) == large


def test_kernel_without_huge_pages_has_no_large_leaves(
    shell: FakeShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for said in ("\n1\n", "\n0\n", "1\n", "0\n"):
        monkeypatch.setattr(shell, "run", lambda *a, said=said, **k: SimpleNamespace(stdout=said))
        assert not workload._has_large_leaves(host_of(shell), {"qemu": "10.0.2"})


def test_host_that_broke_while_it_was_mapped_is_the_arms(
    shell: FakeShell, trial: TrialWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(shell)

    def broken() -> None:
        raise ArmFailedError("oops", reason=Reason.HOST_PANIC)

    monkeypatch.setattr(host, "check", broken)
    chosen = map_scenario()
    with pytest.raises(ArmFailedError):
        run_maps(
            host, DEVICE, chosen.map, chosen.points(), ["plain"], trial=trial, progress=Progress()
        )
    assert [stage.outcome for stage in trial.manifest.stages] == ["host-panic"]


def test_bar_that_is_smaller_than_a_gibibyte_is_asked_for_in_bytes() -> None:
    chosen = map_scenario("device.bar=512MiB", 'map.sizes=["256MiB", "512MiB"]')
    sizes = [
        p["size"]
        for p in build_point_request(chosen.map, chosen.points(), 1, exact=False)["points"]
    ]
    assert sizes == [256 * MIB, 512 * MIB]
