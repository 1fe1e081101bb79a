"""The pytest plugin: tests over two kernels. `docs/how-to/pytest.md` tells how to use it.

Loading it costs a pytest that does not use it next to nothing: it imports nothing of barometer's
until a test has one of its marks or fixtures.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from orchestrator.harness.claims import JudgedPair
    from orchestrator.harness.kernel_log import KernelLog
    from orchestrator.harness.live import LiveBar, LiveGuest, LiveHost
    from orchestrator.harness.stand import Stand

_ARMS = ("baseline", "candidate")
_MARKS = {
    "barometer": "barometer(*settings, **keys): keys of the scenario of the test",
    "barometer_arms": "barometer_arms(*names): the arms that the fixture `arm` goes through",
    "barometer_needs": "barometer_needs(*names, otherwise): what the machine needs",
}
_FIXTURES = frozenset({
    "ab", "arm", "bar", "bar_size", "devices", "firmware", "guest", "guest_kernel", "host", "kmsg",
    "run_dir",
})  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("barometer", "tests over two host kernels")
    add = group.addoption
    add("--barometer-host", metavar="HOST", default="nested",
        help="nested, exact, tcg, kvm, or the SSH address of a machine")  # fmt: skip
    add("--barometer-base", metavar="KERNEL", help="kernel of the baseline, as in `barometer ab`")
    add("--barometer-candidate", metavar="KERNEL", help="kernel of the candidate")
    add("--barometer-series", metavar="PATCHES", action="append", default=[],
        help="patches on top of the candidate, or of the baseline without one")  # fmt: skip
    add("--barometer-config", metavar="FILE|LINE", action="append", default=[],
        help="configuration of the kernels that are built")  # fmt: skip
    add("--barometer-out", metavar="DIR", help="folder for the runs")
    add("--barometer-replay", metavar="DIR", help="judge the saved runs in DIR, boot nothing")
    add("--barometer-keep", choices=["failed"], help="keep what a failed test leaves")
    add("--barometer-shell", action="store_true",
        help="a shell on the live host at the failing assert")  # fmt: skip
    add("--barometer-ktap", metavar="FILE", help="write the results as KTAP, too")


def pytest_configure(config: pytest.Config) -> None:
    for line in _MARKS.values():
        config.addinivalue_line("markers", line)
    if (path := config.getoption("barometer_ktap")) and not hasattr(config, "workerinput"):
        from orchestrator.harness.ktap import KtapFile  # noqa: PLC0415

        config.pluginmanager.register(KtapFile(config.invocation_params.dir / path))


def _is_ours(node: pytest.Item, fixtures: list[str]) -> bool:
    return bool(_FIXTURES & set(fixtures)) or any(map(node.get_closest_marker, _MARKS))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Check the marks of a test while its file is collected, so that nothing boots if one is
    wrong. Run it on both arms if it uses `arm`."""
    node = metafunc.definition
    if not _is_ours(node, metafunc.fixturenames):
        return
    from orchestrator.analysis.doctor.finding import FINDINGS  # noqa: PLC0415
    from orchestrator.base.errors import ScenarioError  # noqa: PLC0415
    from orchestrator.harness.options import (  # noqa: PLC0415
        PluginOptions,
        check_names,
        resolve_test,
    )

    try:
        resolve_test(node, metafunc.fixturenames, PluginOptions.of(metafunc.config))
        arms = check_names(node, "barometer_arms", _ARMS) or _ARMS
        check_names(node, "barometer_needs", FINDINGS)
    except ScenarioError as exc:
        raise pytest.Collector.CollectError(str(exc)) from exc
    parametrized = [str(mark.args[0]) for mark in node.iter_markers("parametrize") if mark.args]
    if "arm" in metafunc.fixturenames and not any("arm" in p.split(",") for p in parametrized):
        metafunc.parametrize("arm", arms, indirect=True, scope="session")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    """Check what parameters set, which tests have only now, and order live tests by their
    machines, so that each boots once. pytest-xdist reads the groups in its own hook, which has to
    come after this one: else each worker would boot each machine."""
    ours = [item for item in items if _is_ours(item, getattr(item, "fixturenames", []))]
    if not ours:
        return (yield)
    from orchestrator.base.errors import ScenarioError  # noqa: PLC0415
    from orchestrator.harness.ordering import group_by_machine, order_by_machine  # noqa: PLC0415

    try:
        groups = group_by_machine(ours, config)
    except ScenarioError as exc:
        raise pytest.UsageError(str(exc)) from exc
    yield
    items[:] = order_by_machine(items, groups)
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a failure of the bench, and evidence that decides nothing, as an error: it is never
    a pass or a skip, nor the failure that a test marked `xfail` waits for."""
    report = yield
    errors = sys.modules.get("orchestrator.base.errors")
    raised = call.excinfo.value if call.excinfo is not None else None
    if errors and isinstance(raised, errors.BarometerError):
        report.__dict__.pop("wasxfail", None)
        report.outcome = "failed"
        if report.when == "call" and not isinstance(raised, errors.ArmFailedError):
            report.when = "setup"  # the phase whose failures pytest calls errors
    return report


def pytest_exception_interact(
    node: pytest.Item | pytest.Collector, call: pytest.CallInfo[Any],
    report: pytest.CollectReport | pytest.TestReport,
) -> None:  # fmt: skip
    """Give a person a shell on the host whose test has failed. Leaving it goes on."""
    if not node.config.getoption("barometer_shell") or getattr(report, "when", "") == "collect":
        return
    stand = getattr(node, "funcargs", {}).get("_stand")
    if stand is None or (shell := stand.find_shell()) is None:
        return
    from orchestrator.machine.transport.terminal import run_terminal  # noqa: PLC0415

    capturing = node.config.pluginmanager.getplugin("capturemanager")
    capturing.suspend_global_capture(in_=True)
    try:
        print(f"\n{report.nodeid}: {call.excinfo.value if call.excinfo else 'failed'}")  # noqa: T201
        run_terminal(shell)
    finally:
        capturing.resume_global_capture()


@pytest.fixture(scope="session")
def _stand(pytestconfig: pytest.Config) -> Iterator[Stand]:
    from orchestrator.harness.stand import open_stand  # noqa: PLC0415

    with open_stand(pytestconfig) as stand:
        yield stand


@pytest.fixture(scope="session")
def arm(request: pytest.FixtureRequest) -> Any:
    """The arm that the test runs on: baseline, candidate."""
    return request.param


@pytest.fixture
def ab(request: pytest.FixtureRequest, _stand: Stand) -> JudgedPair:
    """A judged run of both arms. A run that is invalid is an error."""
    return _stand.judge_pair(request.node)


@pytest.fixture
def run_dir(request: pytest.FixtureRequest, _stand: Stand) -> Path:
    """The folder of the test's run."""
    return _stand.run(request.node).path


@pytest.fixture
def kmsg(request: pytest.FixtureRequest, _stand: Stand, arm: Any) -> KernelLog:
    """What the arm's kernel printed on its console."""
    return _stand.kernel_log(request.node, arm)


@pytest.fixture
def host(request: pytest.FixtureRequest, _stand: Stand, arm: Any) -> LiveHost:
    """The arm's host: booted, proven, settled, and shared with all tests that ask for the same."""
    return _stand.host(request.node, arm)


@pytest.fixture
def devices(request: pytest.FixtureRequest, _stand: Stand, arm: Any) -> tuple[LiveBar, ...]:
    """The BARs of the host's devices."""
    return _stand.bars(request.node, arm)


@pytest.fixture
def bar(devices: tuple[LiveBar, ...]) -> LiveBar:
    """The BAR of the first device."""
    return devices[0]


@pytest.fixture
def guest(request: pytest.FixtureRequest, _stand: Stand, arm: Any) -> LiveGuest:
    """The guest that owns the host's devices."""
    return _stand.guest(request.node, arm)


@pytest.fixture
def bar_size(request: pytest.FixtureRequest, _stand: Stand) -> int:
    """Bytes of the BAR; a parameter sets it (`indirect=True`)."""
    return _stand.scenario(request.node).device.bar


@pytest.fixture
def firmware(request: pytest.FixtureRequest, _stand: Stand) -> str | None:
    """The guest's firmware; a parameter sets it (`indirect=True`)."""
    guest = _stand.scenario(request.node).guest
    return guest.firmware if guest else None


@pytest.fixture
def guest_kernel(request: pytest.FixtureRequest, _stand: Stand) -> str | None:
    """The guest's kernel; a parameter sets it (`indirect=True`), spelled as in `barometer ab`."""
    guest = _stand.scenario(request.node).guest
    return str(guest.kernel) if guest else None
