"""One profile, or two that are compared, as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.analysis.boot.spent import UNEXPLAINED
from orchestrator.analysis.diagnosis.advice import NO_REMEDY
from orchestrator.analysis.diagnosis.compare import compare_profiles
from orchestrator.analysis.diagnosis.diagnosis import Profile
from orchestrator.report.html.charts import Figure, timeline_chart
from orchestrator.report.html.html import render_page
from orchestrator.report.text.profile_change_text import change_sentence
from orchestrator.report.text.profile_text import profile_sentence, text_profile
from orchestrator.report.words.quantities import format_quantity


@dataclass(frozen=True)
class _Cost:
    problem: str
    seconds: str
    share: str
    remedies: tuple[str, ...]


@dataclass(frozen=True)
class _Page:
    title: str
    sentence: str
    figures: Mapping[str, Figure]
    changes: Sequence[tuple[str, str, str]]
    costs: Mapping[str, Sequence[_Cost]]
    texts: Mapping[str, str]


def profile_page(before: Profile, after: Profile | None = None) -> str:
    """Return the page. `after`: a second profile, to be compared with the first."""
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
    page = _Page(
        title=f"Profile of {before.facts.domain}",
        sentence=sentence,
        figures={"timeline": timeline_chart(drawn)} if drawn else {},
        changes=changes,
        costs={name: _list_costs(profile) for name, profile in names.items()},
        texts={name: text_profile(profile) for name, profile in names.items()},
    )
    return render_page("profile.html.jinja", page, page.figures)


def _list_costs(profile: Profile) -> list[_Cost]:
    whole = profile.whole_seconds

    def share(seconds: float) -> str:
        return f"{seconds / whole:.1%}" if whole else ""

    costs = [
        _Cost(
            advice.problem, format_quantity(advice.seconds, "s") if advice.seconds else "",
            share(advice.seconds) if advice.seconds else "",
            tuple(remedy.text for remedy in advice.remedies) or (NO_REMEDY,),
        )
        for advice in profile.advice
    ]  # fmt: skip
    rest = profile.unexplained
    return [*costs, _Cost(UNEXPLAINED, format_quantity(rest, "s"), share(rest), ())]
