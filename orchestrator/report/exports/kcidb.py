"""A run as KCIDB objects (schema 5.3 of kcidb-io), for KernelCI's database. Each arm's kernel is a
checkout and a build. The tests are the run's verdict, each metric of each arm with its number, and
each trial.

A run that is submitted twice gives the same objects: a kernel's id is made from its content, a
test's from the run's evidence. All times are those recorded in the evidence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from orchestrator.analysis.statistics.summary import summarize
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import Comparison, guest_accels
from orchestrator.base.errors import BenchError
from orchestrator.evidence.plan import Plan
from orchestrator.formats.units import format_size
from orchestrator.report.exports.cases import (
    Case,
    Suite,
    build_suite,
    clean_line,
    clean_text,
    kernel_of,
)
from orchestrator.scenario.choices import Workload
from orchestrator.scenario.machines import Device, HostSpec
from orchestrator.scenario.vocabulary import ARMS, ArmName, is_emulated

ORIGIN = "barometer"
_VERSION = {"major": 5, "minor": 3}
_LOG_LENGTH = 16384  # of log_excerpt, by the schema
_GINSN = 10**9
_NOT_IN_A_PATH = re.compile(r"[^a-zA-Z0-9_-]")


class _Test(NamedTuple):
    arm: ArmName
    name: str
    """Name of the test, unique within a run."""
    node: str
    """Node in the tree of tests: the same for both arms and in every run, so that a kernel has a
    history there."""
    fields: dict[str, object]


def kcidb_objects(
    host: HostSpec, device: Device, workload: Workload, comparison: Comparison, plan: Plan
) -> dict[str, object]:
    """Return the content of kcidb.json, which can be submitted to KernelCI. `plan` is
    plan.json."""
    of_run = build_suite(comparison, plan)
    kernels = {arm: f"{ORIGIN}:{plan.kernels[arm].digest}" for arm in ARMS}
    comments = {kernels[arm]: clean_line(kernel_of(comparison, arm)) for arm in ARMS}
    environment = _environment(host, device, workload, comparison, plan)
    common = {"origin": ORIGIN, "environment": environment}
    return {
        "version": _VERSION,
        "checkouts": [
            {"id": name, "origin": ORIGIN, "valid": True, "comment": comment}
            for name, comment in comments.items()
        ],
        "builds": [
            {"id": name, "checkout_id": name, "origin": ORIGIN, "architecture": "x86_64",
             "status": "PASS", "comment": comment}
            for name, comment in comments.items()
        ],
        "tests": [
            {"id": f"{ORIGIN}:{of_run.digest}/{test.name}", "build_id": kernels[test.arm],
             "path": _path(ORIGIN, comparison.scenario, test.node)} | common | test.fields
            for test in _tests(comparison, of_run)
        ],
    }  # fmt: skip


def _tests(comparison: Comparison, of_run: Suite) -> Iterator[_Test]:
    """Yield the tests of a run. The result of comparing the arms belongs to the candidate's
    test."""
    verdict, *others = of_run.cases
    bench_failed = of_run.exit_code == BenchError.exit_code
    yield _Test("candidate", "verdict", "verdict", _judged(verdict, bench_failed))
    judged = {c.name: _judged(c, bench_failed) for c in others if c.kind == "metric"}
    for metric in comparison.metrics:
        compared = of_run.metrics[metric.name]
        for arm in ARMS:
            values = getattr(metric, arm)
            middle = summarize(metric.unit, values).middle
            misc: dict[str, object] = {"metric": metric.name, "samples": list(values)}
            test: dict[str, object] = {
                "status": "DONE", "number": _number(middle, compared["unit"]), "misc": misc,
            }  # fmt: skip
            if arm == "candidate":
                misc["compared"] = compared
                test |= judged.pop(metric.name, {})
            yield _Test(arm, f"{metric.name}/{arm}", metric.name, test)
    for name, test in judged.items():  # not measured
        yield _Test("candidate", f"{name}/candidate", name, test | {"misc": {"metric": name}})
    for result in comparison.results:
        arm = "candidate" if result.arm == "candidate" else "baseline"
        yield _Test(arm, f"trial/{clean_line(result.name)}", "trial", _trial(result))


def _judged(case: Case, bench_failed: bool) -> dict[str, object]:
    """Return the status and the comment of a case. DONE: it ran, but does not judge the kernel.
    MISS: the bench failed. ERROR: the result cannot be trusted."""
    status = {"passed": "PASS", "failed": "FAIL"}.get(case.outcome)
    if status is None:
        status = "MISS" if bench_failed else "DONE" if case.reason == "inconclusive" else "ERROR"
    return {"status": status, "comment": case.message}


def _trial(result: TrialResult) -> dict[str, object]:
    """Return the test object of a trial. A trial only measures; the metrics say whether its values
    are good. MISS: the bench failed."""
    invalid = "MISS" if result.by_bench else "ERROR"
    misc: dict[str, object] = {"arm": result.arm, "pair": result.pair}
    test: dict[str, object] = {
        "status": {"measured": "DONE", "failed": "FAIL"}.get(result.kind, invalid),
        "misc": misc,
    }
    if result.kind != "measured":
        test["comment"] = clean_line(f"{result.reason}: {result.message}")
        misc |= {"reason": clean_line(result.reason), "stage": clean_line(result.stage)}
    if result.evidence:
        test["log_excerpt"] = clean_text(result.evidence)[-_LOG_LENGTH:]
    if result.started:
        test["start_time"] = result.started
    if result.seconds is not None:
        test["duration"] = result.seconds
    return test


def _number(value: float, unit: object) -> dict[str, object]:
    if unit == "Ginsn":
        return {"value": value * _GINSN, "unit": "instructions", "prefix": "metric"}
    if unit == "count":
        return {"value": value}
    if unit == "s":
        return {"value": value, "unit": "s", "prefix": "metric"}
    return {"value": value, "unit": unit}  # "memulated s" would not be milliseconds


def _path(*parts: str) -> str:
    return ".".join(_NOT_IN_A_PATH.sub("_", part) for part in parts)


def _environment(
    host: HostSpec, device: Device, workload: Workload, comparison: Comparison, plan: Plan
) -> dict[str, object]:
    emulated = ", EMULATED" * is_emulated(plan.accel)
    if not emulated and "tcg" in guest_accels(comparison.results):
        emulated = ", its guests EMULATED"
    viommu, more = "", {}
    if host.viommu:
        viommu = f", {host.viommu} vIOMMU"
        more = {"viommu": host.viommu, "host_cpus": host.cpus}
    return {
        "comment": f"{host.title}, accel {plan.accel}{emulated}{viommu},"
        f" {device.kind} with a BAR of {format_size(device.bar)}",
        "misc": {
            "accel": plan.accel, **more,
            "device": device.kind, "device_count": device.count, "bar_bytes": device.bar,
            "workload": workload,
        },
    }  # fmt: skip
