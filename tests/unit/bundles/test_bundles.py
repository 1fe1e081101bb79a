"""A run is handed over as one file; what comes out of it elsewhere is compared with it."""

from __future__ import annotations

import contextlib
import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.kernels.directory import copy_kernel
from orchestrator.run import ab
from orchestrator.run.bundles.again import compare_again, format_again
from orchestrator.run.bundles.packing import make_bundle
from orchestrator.run.bundles.record import BUNDLE, BundleRecord
from orchestrator.run.bundles.unpacking import is_bundle, open_bundle
from orchestrator.run.kernels import RunKernels
from orchestrator.run.library import load
from orchestrator.run.trials import Enough, Runner
from orchestrator.scenario.factors import load_scenarios
from orchestrator.scenario.kernel_forms import DebKernel, DirKernel
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS
from tests.unit.bundles.made import (
    change_run,
    exact_run,
    list_tree,
    read_entries,
    replace_content,
    write_entries,
)
from tests.unit.test_cli import Command, Said, barometer

__all__ = ["barometer"]
RECORDED = Path(__file__).parents[3] / "fixtures/recorded"


class Lab:
    """A machine with a run, and another one that gets its bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache, self.elsewhere = Cache(folder / "cache"), Cache(folder / "elsewhere")
        self.run = exact_run(folder / "run", folder / "kernels", self.cache)
        self.file = folder / "it.bundle.tar.gz"

    def pack(self, run: Path | None = None, *, all_kernels: bool = False) -> BundleRecord:
        self.file.unlink(missing_ok=True)
        return make_bundle(
            run or self.run, self.file, self.cache, Progress(), all_kernels=all_kernels
        )


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_the_same_run_gives_the_same_bytes(lab: Lab) -> None:
    lab.pack()
    before = lab.file.read_bytes()
    shutil.copytree(lab.run, lab.folder / "again" / lab.run.name)  # other times, other inodes
    lab.pack(lab.folder / "again" / lab.run.name)
    assert lab.file.read_bytes() == before
    assert is_bundle(lab.file)
    assert not is_bundle(lab.run / "scenario.toml")


def test_kernels_that_no_mirror_has_are_in_the_bundle(lab: Lab) -> None:
    """The folders that they were in, and the cache that has them, are those of one machine."""
    record = lab.pack()
    shutil.rmtree(lab.folder / "kernels")
    bundle = open_bundle(lab.file, lab.elsewhere)
    [cell] = load_scenarios(bundle.scenario).cells
    for arm in ARMS:
        kernel = cell.scenario.arms[arm].kernel
        assert isinstance(kernel, DirKernel)
        assert kernel.dir == bundle.folder / str(record.kernels[arm].folder)
        before = lab.cache.root / "kernels" / record.kernels[arm].digest
        after = copy_kernel(kernel, lab.elsewhere)
        assert after.release == record.kernels[arm].release
        assert list_tree(after.modules) == list_tree(before / "modules")
        assert after.vmlinuz.read_bytes() == (before / "vmlinuz").read_bytes()
    evidence = list_tree(lab.run / "trials")
    assert list_tree(bundle.folder / "run/trials") == evidence
    assert record.conditions.baseline["accel"] == "exact"


def test_a_kernel_that_is_gone_cannot_be_handed_over(lab: Lab) -> None:
    shutil.rmtree(lab.cache.root / "kernels")
    with pytest.raises(ScenarioError, match="no longer in the cache") as caught:
        lab.pack()
    assert caught.value.reason == Reason.BUNDLE
    assert not [*lab.folder.glob("*.gz"), *lab.folder.glob(".*.new")]


@pytest.mark.parametrize("run", ["map-exact", "debian-6.12-vs-7", "metal", "boot-exact"])
def test_packages_are_named_by_their_version(lab: Lab, run: str) -> None:
    record = lab.pack(RECORDED / run)
    assert all(record.kernels[arm].folder is None for arm in ARMS)
    bundle = open_bundle(lab.file, lab.elsewhere)
    address = ["host.address=root@mine"] if run == "metal" else []
    [cell] = load_scenarios(bundle.scenario, address).cells
    plan = json.loads((RECORDED / run / "plan.json").read_text())
    for arm in ARMS:
        kernel = cell.scenario.arms[arm].kernel
        assert isinstance(kernel, DebKernel)
        assert kernel.version == plan["kernels"][arm]["provenance"]["version"]
    if run != "metal":
        assert cell.scenario.nested.accel == plan["accel"]
    else:
        with pytest.raises(ScenarioError, match=r"host\.address"):
            load_scenarios(bundle.scenario)


def test_a_matrix_has_cells_to_hand_over(lab: Lab) -> None:
    with pytest.raises(ScenarioError, match="each of its cells"):
        lab.pack(RECORDED / "factors")


# what comes out elsewhere ------------------------------------------------------------------------


def test_a_run_elsewhere_gives_the_same_numbers(lab: Lab) -> None:
    again = compare_again(lab.pack(), load(lab.run))
    assert again.exit_code == 0
    assert len(again.metrics) > 10
    assert all(metric.came_out for metric in again.metrics)
    assert again.differences == ()


@given(more=st.integers(1, 10**6), arm=st.sampled_from(ARMS), sample=st.integers(0, 1))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_other_number_is_seen(lab: Lab, more: int, arm: str, sample: int) -> None:
    record = lab.pack()
    other = lab.folder / "other"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(lab.run, other)

    def add(document: dict[str, Any]) -> None:
        for point in document["passes"]["plain"]["points"]:
            for taken in point["samples"]:
                taken["unmap_ns"] += more

    change_run(other, arm, add, "map.json")
    run = load(other)
    if run.comparison.count(cast(Any, arm), "measured") == 0:
        return  # the evidence itself shows it
    again = compare_again(record, run)
    assert again.exit_code == 1
    assert all(metric.before.name.startswith("bar_unmap_cost") for metric in again.exact_differ)
    assert f"not again  bar_unmap_cost: {arm} " in format_again(again)


def test_what_differs_is_told_first(lab: Lab) -> None:
    facts = {"runner_versions": {"qemu": "10.0.2"}, "host_packages": {"systemd": "257"}}
    kernels = lab.folder / "kernels"
    record = lab.pack(exact_run(lab.folder / "old", kernels, lab.cache, **facts))
    facts = {"runner_versions": {"qemu": "11.0.0"}, "host_packages": {"systemd": "999"}}
    run = exact_run(lab.folder / "new", kernels, lab.cache, **facts)
    change_run(run, "candidate", _slower, "map.json")
    again = compare_again(record, load(run))
    names = {difference.name: difference for difference in again.differences}
    assert names["runner.qemu"].now == "11.0.0"
    assert names["runner.qemu"].arm is None  # of both arms, told once
    text = format_again(again).splitlines()
    told = [line.split()[0] for line in text]
    assert told == ["differs", "differs", "again", "not"] + ["not"] * (len(told) - 4)
    assert any("runner.qemu: 10.0.2 -> 11.0.0" in line for line in text[:2])


def test_a_bundle_runs_as_its_scenario(
    barometer: Command, capsys: Said, monkeypatch: pytest.MonkeyPatch, lab: Lab
) -> None:
    lab.pack()
    ran: list[Scenario] = []

    def run_plan(
        scenario: Scenario, text: str, out: Path, here: Runner, enough: Enough | None
    ) -> bool:
        ran.append(scenario)
        shutil.copytree(lab.run, out, dirs_exist_ok=True)
        return True

    def runner(
        kernels: RunKernels, progress: Progress, *, keep: bool, visit: None
    ) -> contextlib.AbstractContextManager[Runner]:
        nothing = cast(Any, SimpleNamespace())
        return contextlib.nullcontext(Runner(kernels, nothing, nothing, progress, keep))

    monkeypatch.setattr(ab, "ready_runner", runner)
    monkeypatch.setattr(ab, "run_plan", run_plan)
    out = lab.folder / "out"
    assert barometer("run", lab.file, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("differs ")
    assert lines[1].startswith("again ")
    assert lines[-1] == f"run: {out}"
    assert ran[0].host.exact
    assert json.loads((out / "again.json").read_text())["differences"] == []
    # the same with another number
    change_run(lab.run, "candidate", _slower, "map.json")
    assert barometer("run", lab.file, "--out", lab.folder / "out2", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 1
    assert document["again"]["metrics"]["bar_unmap_cost"]["came_out"] is False


def _slower(document: dict[str, Any]) -> None:
    for point in document["passes"]["plain"]["points"]:
        for taken in point["samples"]:
            taken["unmap_ns"] += 7000


def test_the_verb_says_what_it_packed(barometer: Command, capsys: Said, lab: Lab) -> None:
    out = lab.folder / "my.bundle.tar.gz"
    assert barometer("bundle", lab.run, "--out", out) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"bundle: {out} (")
    assert barometer("bundle", lab.run, "--out", out) == 2  # never over another file
    assert barometer("bundle", RECORDED / "map-exact", "--out", lab.folder / "b", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["accel"]) == (1, "exact")


# bundles of others -------------------------------------------------------------------------------

HOSTILE = {
    "console": 'host = { accel = "exact", console = "touch PWNED" }\n',
    "power": 'host = { accel = "exact", power_cycle = "touch PWNED" }\n',
    "ssh": 'host.ssh_config = "evil"\n',
    "address": 'host.address = "root@gpu1"\n',
    "history": 'history = { store = "/tmp/x" }\n',
    "matrix": '[matrix]\n"device.count" = [1, 2]\n',
    "folder": 'arms.baseline.kernel = { dir = "/boot" }\n',
    "out": 'arms.baseline.kernel = { dir = "../../x" }\n',
    "tree": 'arms.candidate.kernel = { tree = "/srv/linux" }\n',
    "module": 'arms.candidate.kernel = { deb = "linux-image-amd64", suite = "sid", module = "x" }',
    "series": 'arms.candidate.kernel = { deb = "linux-image-amd64", suite = "sid", '
              'series = ["/etc/passwd"] }',
    "guest": 'guest.kernel = { dir = "/boot" }\n',
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bundle_may_name_nothing_of_this_machine(lab: Lab, kind: str) -> None:
    lab.pack()
    entries = read_entries(lab.file)
    own = next(content for entry, content in entries if entry.name == "scenario.toml").decode()
    document = tomlkit.parse(own).unwrap()
    for key, value in tomlkit.parse(HOSTILE[kind]).unwrap().items():
        document[key] = document.get(key, {}) | value if isinstance(value, dict) else value
        if key == "arms":
            arms = tomlkit.parse(own).unwrap()["arms"]
            document[key] = arms | value
    changed = replace_content(entries, "scenario.toml", tomlkit.dumps(document).encode())
    with pytest.raises(ScenarioError, match="may not name") as caught:
        open_bundle(write_entries(lab.file, changed), lab.elsewhere)
    assert caught.value.reason == Reason.BUNDLE


def _link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        tarfile.TarInfo("../outside"), tarfile.TarInfo("/tmp/pool24-outside"),
        tarfile.TarInfo("run/extra"), tarfile.TarInfo("scenario.toml"), tarfile.TarInfo(BUNDLE),
        _link("run/link", "/etc/passwd"), _link("run", "/tmp"),
        _link("run/hard", "scenario.toml", tarfile.LNKTYPE),
        _link("run/pipe", "", tarfile.FIFOTYPE), _link("run/device", "", tarfile.CHRTYPE),
    ],
    ids=lambda entry: f"{entry.name}-{entry.type!r}",
)  # fmt: skip
@pytest.mark.parametrize("listed", [False, True])
def test_only_listed_plain_files_are_unpacked(
    lab: Lab, entry: tarfile.TarInfo, listed: bool
) -> None:
    lab.pack()
    (first, text), *rest = read_entries(lab.file)
    record = json.loads(text)
    if listed:
        record["files"].setdefault(entry.name, "0" * 64)
    changed = [(first, json.dumps(record).encode()), *rest, (entry, b"")]
    before = {*lab.folder.iterdir()}
    with pytest.raises(ScenarioError):
        open_bundle(write_entries(lab.file, changed), lab.elsewhere)
    assert {*lab.folder.iterdir()} - before <= {lab.elsewhere.root}
    assert not [*(lab.elsewhere.root / "bundles").glob("[0-9a-f]*/")]


@given(data=st.data())
@settings(max_examples=40, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_a_damaged_bundle_is_refused_or_whole(lab: Lab, data: st.DataObject) -> None:
    """Of the content of the files nothing is lost unseen; bytes of the container that nobody reads
    may differ."""
    if not lab.file.exists():
        lab.pack()
    whole = lab.file.read_bytes()
    wanted = {entry.name: content for entry, content in read_entries(lab.file)}
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[at] ^ data.draw(st.integers(1, 255))
    rest = data.draw(st.sampled_from([b"", bytes([flipped]) + whole[at + 1 :]]))
    path = lab.folder / "damaged"
    path.write_bytes(whole[:at] + rest)
    try:
        bundle = open_bundle(path, lab.elsewhere)
    except ScenarioError:
        return
    assert {name: (bundle.folder / name).read_bytes() for name in wanted} == wanted
