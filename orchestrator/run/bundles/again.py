"""What came out of a bundle: what differs from the run that it was made of, and which numbers are
the same. Counts and instructions are the same or not; of times the intervals of the ratios meet or
not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.analysis.conditions.conditions import find_differences
from orchestrator.evidence.layout import RunDir, write_json
from orchestrator.report.words.quantities import arm_text, plural, ratio_text
from orchestrator.run.bundles.outcomes import count_outcomes, find_conditions, list_metrics
from orchestrator.run.bundles.record import ArmOutcomes, BundledMetric, BundleRecord
from orchestrator.run.judging.judge import Judged, Run, judge
from orchestrator.scenario.vocabulary import ARMS, ArmName

_EXACT_UNITS = ("count", "Ginsn")
_MOST_LINES = 6
"""Differences that are printed; all of them are in the document."""
_NAMES_A_KERNEL = "host.kernel.source"
"""A kernel of the bundle is a folder here: that says nothing of its content."""


@dataclass(frozen=True)
class Difference:
    """A condition that is another one here."""

    name: str
    arm: ArmName | None
    """None: of both arms."""
    before: str
    now: str


@dataclass(frozen=True)
class MetricAgain:
    """A metric, as it was and as it came out."""

    before: BundledMetric
    now: BundledMetric | None
    """None: it was not measured."""

    @property
    def is_exact(self) -> bool:
        return self.before.unit in _EXACT_UNITS

    def differs_in(self, arm: ArmName) -> bool:
        """True if an exact metric's values are not the same."""
        return self.now is None or {*getattr(self.before, arm)} != {*getattr(self.now, arm)}

    @property
    def came_out(self) -> bool | None:
        """Whether it is as it was; None if that cannot be told, for want of an interval."""
        if self.now is None:
            return False
        if self.is_exact:
            return not any(map(self.differs_in, ARMS))
        if self.before.interval is None or self.now.interval is None:
            return None
        (low, high), (low_now, high_now) = self.before.interval, self.now.interval
        return low <= high_now and low_now <= high


@dataclass(frozen=True)
class Again:
    """A run of a bundle, beside the run that the bundle was made of."""

    bundle: BundleRecord
    differences: tuple[Difference, ...]
    metrics: tuple[MetricAgain, ...]
    outcomes: tuple[tuple[ArmName, ArmOutcomes, ArmOutcomes], ...]
    """Of the arms whose trials ended otherwise."""

    @property
    def exact_differ(self) -> tuple[MetricAgain, ...]:
        """The exact numbers that are not the same."""
        return tuple(m for m in self.metrics if m.is_exact and not m.came_out)

    @property
    def exit_code(self) -> int:
        """1 if a number that should be the same is not, else 0."""
        return 1 if self.exact_differ else 0

    def to_json(self) -> dict[str, object]:
        return {
            "schema": 1, "run": self.bundle.run, "verdict": self.bundle.verdict,
            "differences": [
                {"name": d.name, "arm": d.arm, "before": d.before, "now": d.now}
                for d in self.differences
            ],
            "outcomes": {
                arm: {"before": before.to_json(), "now": now.to_json()}
                for arm, before, now in self.outcomes
            },
            "metrics": {
                m.before.name: {
                    "unit": m.before.unit, "came_out": m.came_out,
                    "before": {arm: getattr(m.before, arm) for arm in ARMS},
                    "now": m.now and {arm: getattr(m.now, arm) for arm in ARMS},
                }
                for m in self.metrics
            },
        }  # fmt: skip


def add_comparison(bundle: BundleRecord, judged: Judged) -> Judged:
    """Compare a run of a bundle with the bundle's. Write the result into the run, and put it
    before the end of its output."""
    folder = Path(str(judged.document["run"]))
    again = compare_again(bundle, judge(RunDir.open(folder)))
    write_json(folder / "again.json", again.to_json())
    code = judged.exit_code or again.exit_code
    return judged._replace(
        brief=f"{format_again(again)}\n{judged.brief}",
        exit_code=code,
        document=judged.document | {"again": again.to_json(), "exit_code": code},
    )


def compare_again(bundle: BundleRecord, run: Run) -> Again:
    """Compare a run of a bundle with the run that the bundle was made of."""
    now = {metric.name: metric for metric in list_metrics(run)}
    metrics = (MetricAgain(metric, now.get(metric.name)) for metric in bundle.metrics)
    outcomes = ((arm, bundle.outcomes[arm], count_outcomes(run, arm)) for arm in ARMS)
    return Again(
        bundle, tuple(_list_differences(bundle, run)), tuple(metrics),
        tuple(pair for pair in outcomes if pair[1].failed != pair[2].failed),
    )  # fmt: skip


def _list_differences(bundle: BundleRecord, run: Run) -> Iterator[Difference]:
    """Yield the conditions that differ; one of both arms once."""
    by_arm: dict[ArmName, list[Difference]] = {}
    for arm in ARMS:
        sides = {"before": [bundle.conditions[arm]], "now": [find_conditions(run.trials, arm)]}
        by_arm[arm] = [
            Difference(d.name, arm, d.values["before"][0], d.values["now"][0])
            for d in find_differences(sides)
            if not d.allowed and len(d.values) == 2 and all(d.values.values())
            and d.name != _NAMES_A_KERNEL and not _is_packed(d.name, bundle, arm)
        ]  # fmt: skip
    baseline, candidate = by_arm["baseline"], by_arm["candidate"]
    values = {(d.name, d.before, d.now) for d in candidate}
    common = {(d.name, d.before, d.now) for d in baseline} & values
    for difference in (*baseline, *candidate):
        key = (difference.name, difference.before, difference.now)
        if key not in common:
            yield difference
        elif difference.arm == "baseline":
            yield Difference(difference.name, None, difference.before, difference.now)


def _is_packed(name: str, bundle: BundleRecord, arm: ArmName) -> bool:
    """True for the digest of a kernel that came with the bundle: its files were compared when they
    were unpacked, and a folder's digest is made otherwise than a package's."""
    if name == "guest.kernel.digest":
        return bundle.guest_kernel is not None and bundle.guest_kernel.folder is not None
    return name == "host.kernel.digest" and bundle.kernels[arm].folder is not None


def format_again(again: Again) -> str:
    """Return what differs, and then which numbers came out again."""
    lines = []
    for difference in again.differences[:_MOST_LINES]:
        arm = f" ({difference.arm})" if difference.arm else ""
        lines.append(f"differs    {difference.name}{arm}: {difference.before} -> {difference.now}")
    if (more := len(again.differences) - _MOST_LINES) > 0:
        lines.append(f"differs    {more} more: again.json")
    for arm, before, now in again.outcomes:
        words = (" ".join(side.failed) or "none" for side in (before, now))
        lines.append(f"failures   {arm}: {' -> '.join(words)}")
    lines += _format_metrics(again)
    if not again.differences:
        lines.insert(0, f"differs    nothing that is recorded, from {again.bundle.run}")
    return "\n".join(lines)


def _format_metrics(again: Again) -> Iterator[str]:
    exact = [metric for metric in again.metrics if metric.is_exact]
    if exact:
        same = len(exact) - len(again.exact_differ)
        yield f"again      {same} of {plural(len(exact), 'exact number')} the same"
    for metric in again.exact_differ[:_MOST_LINES]:
        yield f"not again  {metric.before.name}: {_describe_change(metric)}"
    for metric in again.metrics:
        if not metric.is_exact and metric.came_out is False:
            now = ratio_text(metric.now.ratio) if metric.now else "not measured"
            yield f"not again  {metric.before.name}: {ratio_text(metric.before.ratio)} -> {now}"


def _describe_change(metric: MetricAgain) -> str:
    before, now = metric.before, metric.now
    if now is None:
        return "not measured"
    return "; ".join(
        f"{arm} {arm_text(before.unit, getattr(before, arm))} ->"
        f" {arm_text(before.unit, getattr(now, arm))}"
        for arm in ARMS
        if metric.differs_in(arm)
    )
