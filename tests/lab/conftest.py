"""A real bench for the vm and nested lanes: real libvirt, QEMU, kernels, SSH. No test is skipped:
if something is missing, the test fails and names it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from orchestrator.analysis.trial import TrialResult, read_result
from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError
from orchestrator.base.progress import Progress
from orchestrator.evidence.layout import RunDir, TrialDir
from orchestrator.machine.nested.nested import BootSpec
from orchestrator.machine.nested.sharing import HostPool, NestedMachine
from orchestrator.machine.runner.state import SHM, BenchState, bench_state, token_prefix
from orchestrator.machine.vm import hypervisor
from orchestrator.run.kernels import RunKernels
from orchestrator.run.prepare import build_plan, prepare
from orchestrator.run.trial import Bench
from orchestrator.run.trials import run_until_it_counts
from orchestrator.scenario.loading import load_scenario
from orchestrator.scenario.plan import make_plan
from tests.lab.machine.standin import StandIn, standin
from tests.unit.agents.keeper.machines import Machine, made_up

SCENARIOS = Path(__file__).parents[2] / "fixtures/scenarios"
SMALL = SCENARIOS / "small.toml"


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the records of this process's runs apart from any other's, which may be a second stream
    of tests: `leftovers` and `barometer clean` see only these. If the test runner has set a place
    for them, it looks there afterwards."""
    if "BAROMETER_STATE" in os.environ:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAROMETER_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def means() -> None:
    """Require the programs that a lane with machines needs."""
    for program in ("qemu-system-x86_64", "mmdebstrap", "mke2fs", "ssh"):
        if shutil.which(program, path="/usr/bin:/bin:/usr/sbin:/sbin") is None:
            pytest.fail(f"this lane needs {program}; ci/setup.sh installs it")


@dataclass(frozen=True)
class Outcome:
    result: TrialResult
    path: Path

    @property
    def evidence(self) -> TrialDir:
        return TrialDir.open(self.path)


class RunOne(Protocol):
    """Runs a trial of the small scenario's baseline with overrides and returns its judged result.
    `release`: what the baseline's kernel claims to be, if it is not what it is."""

    def __call__(self, *overrides: str, release: str = "") -> Outcome: ...


class Claiming(NestedMachine):
    """Boots kernels that claim to be of another release."""

    claimed = ""

    def boot_spec(self, *how: Any, **more: Any) -> BootSpec:
        spec = super().boot_spec(*how, **more)
        release = self.claimed or spec.kernel.release
        return replace(spec, kernel=replace(spec.kernel, release=release))


@pytest.fixture(scope="session")
def shared(own_state: None, means: None) -> Iterator[tuple[BenchState, hypervisor.Connection]]:
    """Share libvirt's embedded driver, which can be opened only once in a process."""
    with (
        bench_state() as state,
        hypervisor.embedded(state.folder / "libvirt", Cache().folder("libvirt")) as libvirt,
    ):
        yield state, libvirt


def _run_one(
    folder: Path,
    shared: tuple[BenchState, hypervisor.Connection],
    pool: HostPool,
    overrides: Sequence[str],
    release: str,
) -> Outcome:
    scenario, text = load_scenario(SMALL, ["expect={}", *overrides])
    cache, progress = Cache(), Progress()
    machine = Claiming.of(scenario.host, scenario.device, pool)
    machine.claimed = release
    prepared = prepare(scenario, machine, RunKernels(cache), progress)
    run_dir = RunDir.create(folder, text, build_plan(scenario, prepared))
    bench = Bench(scenario, prepared, run_dir, *shared, progress, machine=machine)
    try:
        run_until_it_counts(bench, make_plan(scenario)[0])
    except BarometerError as exc:
        print(exc)
    trial = run_dir.trials()[0]
    return Outcome(read_result(trial), trial.path)


@pytest.fixture
def one_trial(
    tmp_path: Path, shared: tuple[BenchState, hypervisor.Connection]
) -> Iterator[RunOne]:
    """Run one trial on a host of its own. Afterwards nothing of it may be left."""
    before = leftovers()

    def run(*overrides: str, release: str = "") -> Outcome:
        with contextlib.closing(HostPool(*shared)) as pool:
            return _run_one(tmp_path / "run", shared, pool, overrides, release)

    yield run
    assert leftovers() == before


@pytest.fixture(scope="session")
def kept_host(shared: tuple[BenchState, hypervisor.Connection]) -> Iterator[HostPool]:
    """The host that the tests of a session share, one after the other. It is booted once, as long
    as they ask for the same host."""
    before = leftovers()
    with contextlib.closing(HostPool(*shared)) as pool:
        yield pool
    assert leftovers() == before


@pytest.fixture
def shared_trial(
    tmp_path: Path,
    shared: tuple[BenchState, hypervisor.Connection],
    kept_host: HostPool,
) -> RunOne:
    """Run one trial on the shared host. It may not leave anything on it."""
    folders = (tmp_path / f"run-{number}" for number in itertools.count(1))

    def run(*overrides: str, release: str = "") -> Outcome:
        settings = [*overrides, "host.fresh_boots=false"]
        outcome = _run_one(next(folders), shared, kept_host, settings, release)
        assert outcome.evidence.manifest.host_left is None, outcome.evidence.manifest
        return outcome

    return run


@pytest.fixture(scope="session")
def metal(tmp_path_factory: pytest.TempPathFactory, means: None) -> Iterator[StandIn]:
    """The stand-in metal machine. A test that uses it leaves it on its own kernel, as it was."""
    with standin(tmp_path_factory.mktemp("metal")) as machine:
        yield machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A made-up metal machine, whose only real program is Python: the keeper runs there as it does
    on a real one."""
    with made_up() as made:
        (made.root / "fakes/python3").symlink_to(sys.executable)
        yield made


def leftovers() -> set[str]:
    """List every process, shared-memory file and temporary folder of the runs whose state folder
    is this process's BAROMETER_STATE. Other runs on this machine do not count."""
    prefix = f"barometer-{token_prefix()}"
    listed = subprocess.run(
        ["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True
    )
    machines = {line for line in listed.stdout.splitlines() if f"guest={prefix}" in line}
    shm = {str(p) for p in SHM.glob(f"{prefix}*")}
    folders = {str(p) for p in Path(tempfile.gettempdir()).glob(f"{prefix}*")}
    return machines | shm | folders
