"""The live half without a machine: which tests share one, what is asked of the map agent."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import EvidenceError, ScenarioError
from orchestrator.evidence.layout import RunDir
from orchestrator.harness import machines as machines_module
from orchestrator.harness.live import CountedCalls, LiveBar
from orchestrator.harness.machines import Machines, _add_pairs
from orchestrator.run.prepare import list_trials
from orchestrator.run.probing import RecordedProbes, check_function
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import make_plan
from tests.unit.recorded import copied_run

pytest_plugins = ["pytester"]
# the plugin is loaded by its entry point; -p would warn where it was imported before
PLUGIN = ("-p", "no:cacheprovider")
TEXT = """\
name = "live"
workload = "map"
device.bar = "1GiB"
[host]
accel = "exact"
[arms]
baseline.kernel = { deb = "linux-image-cloud-amd64", suite = "trixie" }
candidate.kernel = { deb = "linux-image-cloud-amd64", suite = "trixie-backports" }
"""


def scenario(*overrides: str) -> Scenario:
    return parse_scenario(TEXT, "live", overrides=overrides)[0]


# which tests share a machine


class FakeMachines(Machines):
    """Machines whose hosts are made up."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(out, keep=False)
        self.events: list[str] = []
        self.is_alive = True

        @contextlib.contextmanager
        def bench(scenario: Scenario, _text: str, _out: Path, _runner: Any) -> Iterator[Scenario]:
            yield scenario

        @contextlib.contextmanager
        def held(scenario: Scenario, arm: str) -> Iterator[Any]:
            name = f"{scenario.device.bar >> 30} {arm}"
            self.events.append(f"boot {name}")
            host = SimpleNamespace(is_alive=lambda: self.is_alive, check=lambda: None)
            yield SimpleNamespace(ready=SimpleNamespace(host=host))
            self.events.append(f"end {name}")

        monkeypatch.setattr(machines_module, "ready_bench", bench)
        monkeypatch.setattr(machines_module, "held_host", held)
        monkeypatch.setattr(Machines, "_ready_runner", lambda _self: None)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachines:
    return FakeMachines(tmp_path, monkeypatch)


def test_a_machine_boots_once_for_all_that_ask_for_the_same(fakes: FakeMachines) -> None:
    small, large = scenario(), scenario("device.bar=2GiB")
    for _ in range(3):
        fakes.hold(small, TEXT, "baseline")
    # what judges does not matter to a host
    fakes.hold(scenario("trials.pairs=7", "judgement.margin=5%"), TEXT, "baseline")
    fakes.hold(small, TEXT, "candidate")
    fakes.hold(large, TEXT, "candidate")
    fakes.close()
    names = ["1 baseline", "1 candidate", "2 candidate"]
    assert fakes.events == [f"{event} {name}" for name in names for event in ("boot", "end")]
    assert len(fakes.boots) == 3


def test_a_machine_that_is_gone_is_booted_again(fakes: FakeMachines) -> None:
    fakes.hold(scenario(), TEXT, "baseline")
    fakes.is_alive = False
    fakes.hold(scenario(), TEXT, "baseline")
    fakes.close()
    assert fakes.events == ["boot 1 baseline", "end 1 baseline"] * 2


TESTS = """
import pytest

small = pytest.mark.barometer("device.bar=1GiB")
large = pytest.mark.barometer("device.bar=2GiB")

@small
def test_1(host): ...
@large
def test_2(bar): ...
@small
def test_3(ab): ...
@small
def test_4(kmsg): ...
@large
def test_5(ab): ...
def test_6(): ...
@small
def test_7(ab): ...
@pytest.mark.parametrize("bar_size", ["2GiB"], indirect=True)
def test_8(host, bar_size): ...
"""


@pytest.mark.parametrize("more", [(), ("-n0", "--dist=loadgroup")])
def test_tests_are_ordered_by_their_machines(
    pytester: pytest.Pytester, more: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_order=TESTS)
    done = pytester.runpytest_inprocess(
        *PLUGIN, "--collect-only", "-q", "--barometer-host=exact", *more
    )
    names = [
        line.partition("::")[2].partition("@")[0] for line in done.outlines if "::" in line
    ]  # fmt: skip
    hosts = [name for name in names if "[" in name]
    assert names[: len(names) - len(hosts)] == ["test_6", "test_3", "test_7", "test_5"]
    machines = [("2" if name[:6] in ("test_2", "test_8") else "1") + name[6:].replace("2GiB", "")
                .replace("-", "") for name in hosts]  # fmt: skip
    assert len(hosts) == 8
    changes = sum(a != b for a, b in itertools.pairwise(machines))
    assert changes == len(set(machines)) - 1 == 3, machines


def test_each_machine_is_a_group_and_timed_ones_are_one(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest

        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(items):
            for item in items:
                print("GROUP", [mark.args for mark in item.iter_markers("xdist_group")])
        """
    )
    pytester.makepyfile(test_order=TESTS)
    groups = {}
    for host in ("exact", "tcg"):
        done = pytester.runpytest_inprocess(
            *PLUGIN, "--collect-only", "-s", f"--barometer-host={host}"
        )
        groups[host] = {line for line in done.outlines if line.startswith("GROUP [(")}
    assert len(groups["exact"]) == 6  # two runs, and two hosts of each arm
    assert groups["tcg"] == {"GROUP [('timed',)]"}


@pytest.mark.parametrize("fixture", ["host", "bar", "devices", "guest"])
def test_what_needs_a_live_host_is_skipped_with_saved_runs(
    pytester: pytest.Pytester, fixture: str, tmp_path: Path
) -> None:
    run = copied_run(tmp_path / "run")
    pytester.makepyfile(test_live=f"def test_it({fixture}):\n    raise ValueError\n")
    pytester.runpytest_inprocess(*PLUGIN, f"--barometer-replay={run}").assert_outcomes(skipped=2)


# pairs that a repeated test adds


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 9), st.sampled_from(["exact", "tcg"]))
def test_more_pairs_come_after_those_of_the_run(
    pairs: int, blocks: int, seed: int, accel: str
) -> None:
    text = parse_scenario(
        TEXT, "live",
        overrides=[f"trials.pairs={2 * pairs}", f"trials.seed={seed}", f"host.accel={accel}"],
    )[1]  # fmt: skip
    before = parse_scenario(text, "live")[0]
    after, _ = _add_pairs(before, text, 2 * blocks)
    old, new = make_plan(before), make_plan(after)
    assert new[: len(old)] == old
    assert {t.pair for t in new if t.arm == "baseline"} == {*range(1, 2 * (pairs + blocks) + 1)}


def test_a_run_is_extended_by_what_comes_after_it(tmp_path: Path) -> None:
    run = RunDir.open(copied_run(tmp_path / "run"))
    text = run.scenario()
    before = parse_scenario(text, "run")[0]
    after, more = _add_pairs(before, text, 1)
    plan = run.plan()
    trials = [*plan.trials, *list_trials(after)[len(plan.trials) :]]
    run.extend(more, trials)
    assert run.plan().trials == tuple(trials)
    assert run.scenario() == more
    with pytest.raises(ScenarioError):
        run.extend(text, list(reversed(trials)))
    assert run.scenario() == more


# the map agent


class StepAgent:
    """Speaks as guests/agents/map.py does with `step`."""

    def __init__(self, orders: list[list[str]]) -> None:
        self._orders = orders
        self.said: list[str] = []
        self._lines = self._speak()

    def say(self, line: str) -> None:
        self.said.append(line)

    def __next__(self) -> str:
        return next(self._lines)

    def _speak(self) -> Iterator[str]:
        read = 1
        assert json.loads(self.said[0])["step"]
        yield json.dumps({"agent": {}})
        for order in self._orders:
            yield json.dumps({"point": {"order": order}})
            for _ in order:
                for question in ("map", "unmap", ""):
                    while True:
                        yield json.dumps({"next": question})
                        assert len(self.said) > read, "nothing was answered"
                        read += 1
                        if self.said[read - 1] != "toggle":
                            break
                yield json.dumps({"sample": {"unmapped_bytes": 1 << 30}})
        yield json.dumps({"end": True})


def live_bar(agent: StepAgent) -> LiveBar:
    @contextlib.contextmanager
    def staying(*_arguments: str) -> Iterator[Any]:
        yield SimpleNamespace(dialogue=lambda _seconds: agent)

    host = SimpleNamespace(accel="exact", staying_agent=staying, check=lambda: None)
    held = SimpleNamespace(ready=SimpleNamespace(host=host))
    device = SimpleNamespace(address="0000:00:05.0", bar_bytes=1 << 30)
    return LiveBar(cast(Any, held), TEXT, cast(Any, device))


@pytest.mark.parametrize("warm_up", [["cold"], ["prime", "cold"]])
@pytest.mark.parametrize("toggles", [0, 1, 3])
def test_decode_is_toggled_while_the_bar_is_mapped(warm_up: list[str], toggles: int) -> None:
    agent = StepAgent([warm_up, ["cold"]])
    with live_bar(agent).mapped() as mapping:
        mapped_at = len(agent.said)
        for _ in range(toggles):
            mapping.toggle_decode()
        before = mapping.unmapped_bytes
    assert [before, mapping.unmapped_bytes] == [None, 1 << 30]
    # the request, three answers a sample of the warm-up, and one before the map
    assert mapped_at == 1 + 3 * len(warm_up) + 1
    assert agent.said[mapped_at:] == ["toggle"] * toggles + ["", ""]


def test_a_point_that_the_bar_does_not_have_is_refused() -> None:
    bar = live_bar(StepAgent([]))
    for wrong in ("2GiB", "5KiB", "all"):
        with pytest.raises(ScenarioError):
            bar.map(wrong)
    with pytest.raises(ScenarioError):
        bar.map(alignment="3MiB")


# probes of one's own


class KnownFunctions:
    """A shell on a machine whose kernel has these functions."""

    name = "host"

    def __init__(self, *functions: str) -> None:
        self._functions = functions

    def run(self, script: str, **_how: object) -> Any:
        near = "head -n" in script
        lines = [f" t {f}" if near else f" {f}" for f in self._functions if near or f in script]
        return SimpleNamespace(stdout="\n".join(lines))


def test_a_function_that_is_missing_is_named_with_near_ones() -> None:
    shell = KnownFunctions("vaddr_get_pfns", "vfio_pin_pages_remote")
    check_function(cast(Any, shell), "vaddr_get_pfns")
    with pytest.raises(ScenarioError) as raised:
        check_function(cast(Any, shell), "vaddr_get_pfn")
    assert "vaddr_get_pfns" in str(raised.value)
    for wrong in ("vaddr get", "$(reboot)", ""):
        with pytest.raises(ScenarioError):
            check_function(cast(Any, shell), wrong)


def test_calls_are_known_once_the_block_has_ended() -> None:
    recorded = RecordedProbes()
    counted = CountedCalls(recorded)
    with pytest.raises(EvidenceError):
        _ = counted.number
    recorded.files["hist-calls.txt"] = (
        "{ common_pid:        412 } hitcount:         32\n\n"
        "Totals:\n    Hits: 32\n    Entries: 1\n    Dropped: 0\n"
    )
    assert counted.number == 32
    recorded.files["hist-calls.txt"] = recorded.files["hist-calls.txt"].replace(
        "Dropped: 0", "Dropped: 2"
    )
    with pytest.raises(EvidenceError):
        _ = counted.number
