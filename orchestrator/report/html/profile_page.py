"""Content of the HTML page of a profile, or of two that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.analysis.boot.spent import UNEXPLAINED
from orchestrator.analysis.diagnosis.advice import NO_REMEDY
from orchestrator.analysis.diagnosis.compare import compare_profiles
from orchestrator.analysis.diagnosis.diagnosis import Profile
from orchestrator.report.html.charts import boots_chart
from orchestrator.report.text.profile_change_text import change_sentence
from orchestrator.report.text.profile_text import profile_sentence, text_profile
from orchestrator.report.words.quantities import format_quantity


@dataclass(frozen=True)
class CostRow:
    problem: str
    seconds: str
    share: str
    remedies: tuple[str, ...]


@dataclass(frozen=True)
class ProfilePage:
    title: str
    sentence: str
    chart: Markup | None
    """The boots; None if QEMU did not start."""
    changes: Sequence[tuple[str, str, str]]
    costs: Mapping[str, Sequence[CostRow]]
    texts: Mapping[str, str]


def build_profile_page(before: Profile, after: Profile | None = None) -> ProfilePage:
    """Return the content of the page. `after`: a second profile, to be compared with the first."""
    names = {before.facts.domain: before} if after is None else {"before": before, "after": after}
    changes: list[tuple[str, str, str]] = []
    sentence = profile_sentence(before)
    if after is not None:
        change = compare_profiles(before, after)
        sentence = change_sentence(change)
        changes = [
            (cost.subject, format_quantity(cost.before, "s"), format_quantity(cost.after, "s"))
            for cost in change.costs
        ]
    drawn = {name: p.timeline for name, p in names.items() if p.timeline.phases}
    return ProfilePage(
        title=f"Profile of {before.facts.domain}",
        sentence=sentence,
        chart=boots_chart(drawn, mark="end of the boot") if drawn else None,
        changes=changes,
        costs={name: _list_costs(profile) for name, profile in names.items()},
        texts={name: text_profile(profile) for name, profile in names.items()},
    )


def _list_costs(profile: Profile) -> list[CostRow]:
    whole = profile.whole_seconds

    def share(seconds: float) -> str:
        return f"{seconds / whole:.1%}" if whole else ""

    costs = [
        CostRow(
            advice.problem, format_quantity(advice.seconds, "s") if advice.seconds else "",
            share(advice.seconds) if advice.seconds else "",
            tuple(remedy.text for remedy in advice.remedies) or (NO_REMEDY,),
        )
        for advice in profile.advice
    ]  # fmt: skip
    rest = profile.unexplained
    return [*costs, CostRow(UNEXPLAINED, format_quantity(rest, "s"), share(rest), ())]
