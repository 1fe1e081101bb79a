"""HTML reports of recorded and of made-up runs, and a parser that reads them back."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from orchestrator.analysis.trial import TrialResult, read_result
from orchestrator.analysis.verdict.comparison import Comparison, compare_trials
from orchestrator.evidence.layout import RunDir
from orchestrator.evidence.plan import Plan
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ArmName, Metric, Role
from tests.unit.manifests import plan_of
from tests.unit.scenarios import scenario

RECORDED = Path(__file__).parents[3] / "fixtures/recorded"
RUNS = sorted(path.parent for path in RECORDED.glob("*/plan.json"))
KERNELS: dict[ArmName, dict[str, str]] = {
    "baseline": {"release": "6.12.107+deb13", "source": "deb:old"},
    "candidate": {"release": "7.3.4+deb13", "source": "deb:new"},
}
PLAN = plan_of()
VOID = {"meta", "link", "br", "circle", "path", "img", "input", "hr"}


def judge_recorded(run: Path) -> tuple[Scenario, Comparison, Plan]:
    """Return the content of a recorded run's report."""
    saved = RunDir.open(run)
    chosen, _ = parse_scenario(saved.scenario(), str(run), run)
    plan = saved.plan()
    results = [read_result(trial) for trial in saved.trials()]
    comparison = compare_trials(
        chosen, plan.named_kernels(), results, len(plan.trials), plan.accel
    )
    return chosen, comparison, plan


recorded = functools.cache(judge_recorded)


def trials(
    values: Mapping[Role, Sequence[float]], metric: Metric = "bar_map_cost"
) -> list[TrialResult]:
    """Make measured trials, pair after pair, arm after arm."""
    made: list[TrialResult] = []
    for pair in range(max(map(len, values.values()))):
        for role, of_role in values.items():
            if pair < len(of_role):
                name = f"{len(made) + 1:04d}-{role}"
                made.append(
                    TrialResult(
                        name, role, "measured", samples={metric: (of_role[pair],)}, pair=pair + 1
                    )
                )
    return made


def bad(arm: Role = "candidate", **changes: Any) -> TrialResult:
    """Make a trial that does not count."""
    usual = TrialResult(
        f"0009-{arm}", arm, "failed", "guest-panic", "guest-0-plain", "it panicked"
    )  # fmt: skip
    return replace(usual, **changes)


def compared(
    results: Sequence[TrialResult], *overrides: str, planned: int = 0,
    kernels: Mapping[ArmName, dict[str, str]] = KERNELS, accel: str = "kvm",
) -> Comparison:  # fmt: skip
    return compare_trials(
        scenario(*overrides), {**kernels}, results, planned or len(results), accel
    )


class Page(HTMLParser):
    """A parsed page. Fails for a tag that is not closed, or closed but never opened."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        """Tag -> texts within it."""
        self._shown: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        tag = self.open[-1] if self.open else ""
        self.texts.setdefault(tag, []).append(data)
        if tag not in ("script", "style"):
            self._shown.append(data)

    def with_attribute(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.attributes if name in attributes]

    @property
    def text(self) -> str:
        """Return the whole visible text, except charts."""
        return " ".join("".join(self._shown).split())
