"""Content of the HTML page of a [matrix]: a row for each cell, with its outcome and its boots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.analysis.boot.timeline import Timeline
from orchestrator.analysis.verdict.comparison import (
    Comparison,
    MetricComparison,
    boots_of,
    middle_boots,
)
from orchestrator.analysis.verdict.effect import Verdict
from orchestrator.analysis.verdict.outcome import join_titles
from orchestrator.report.html.charts import strip_chart
from orchestrator.report.words.outcome_words import describe_regressions, describe_trials
from orchestrator.report.words.quantities import change_arms, count_cells, format_quantity
from orchestrator.report.words.variable_words import describe_variable
from orchestrator.report.words.wording import metric_title
from orchestrator.scenario.vocabulary import ARMS, ArmName


@dataclass(frozen=True)
class CellRow:
    name: str
    link: str
    """Address of the cell's own page; empty for a cell that has not begun."""
    verdict: Verdict
    title: str
    regressed: str
    changes: list[str]
    """The metrics that decide, with both arms' medians."""
    trials: str
    strip: Markup | None
    """A boot of each arm."""
    lost: list[str]
    """Reasons of the trials that do not count."""


@dataclass(frozen=True)
class MatrixPage:
    scenario: str
    verdict: Verdict
    title: str
    summary: str
    """How many cells came out how."""
    facts: list[tuple[str, str]]
    rows: list[CellRow]
    unit: str
    """Unit of the strips; empty if there are none."""
    emulated: bool
    not_run: list[str]


def build_matrix_page(
    scenario: str, verdict: Verdict, cells: Mapping[str, Comparison | None],
    links: Mapping[str, str], *, of: int, emulated: bool,
) -> MatrixPage:  # fmt: skip
    """Return the content of the page. `cells`: None for a cell that has not begun. `links`:
    addresses of the cells' own pages. `of`: number of the scenario's cells."""
    begun = {name: cell for name, cell in cells.items() if cell is not None}
    boots = {name: middle_boots(boots_of(cell)) for name, cell in begun.items()}
    longest = max((b.boot_seconds for of in boots.values() for b in of.values()), default=0.0)
    outcomes = [cell.outcome for cell in begun.values()]
    titles = [outcome.title for outcome in outcomes] + ["not run"] * (len(cells) - len(begun))
    counts = {title: titles.count(title) for title in dict.fromkeys(titles)}
    return MatrixPage(
        scenario=scenario,
        verdict=verdict,
        title=join_titles(outcomes, verdict),
        summary=f"{count_cells(len(cells), of)}: "
        + ", ".join(f"{number} {title}" for title, number in counts.items()),
        facts=list(_facts(begun)),
        rows=[_row(n, c, links.get(n, ""), boots[n], longest) for n, c in begun.items()],
        unit=next((b.unit for of in boots.values() for b in of.values()), ""),
        emulated=emulated,
        not_run=[name for name, cell in cells.items() if cell is None],
    )


def _facts(cells: Mapping[str, Comparison]) -> Iterator[tuple[str, str]]:
    for arm in ARMS:
        kernels = (cell.kernels[arm] for cell in cells.values())
        texts = dict.fromkeys(f"{kernel['release']} ({kernel['source']})" for kernel in kernels)
        yield arm, "; ".join(texts)
    differs = (describe_variable(cell.variable, counted=False) for cell in cells.values())
    yield "arms", " ".join(dict.fromkeys(filter(None, differs)))


def _row(
    name: str, cell: Comparison, link: str, boots: Mapping[ArmName, Timeline], longest: float
) -> CellRow:
    outcome = cell.outcome
    times = {arm: format_quantity(b.boot_seconds, b.unit) for arm, b in boots.items()}
    label = f"Boots of {name}: " + ", ".join(f"{arm} {text}" for arm, text in times.items())
    traced = [f"traced boot: {' -> '.join(times.values())}"] * (len(times) == len(ARMS))
    return CellRow(
        name, link, cell.verdict, outcome.title, describe_regressions(outcome.regressed),
        [*map(_change, outcome.deciding), *traced], describe_trials(outcome),
        strip_chart(boots, longest, label) if boots else None,
        sorted({r.reason for r in cell.results if r.kind != "measured"}),
    )  # fmt: skip


def _change(metric: MetricComparison) -> str:
    return f"{metric_title(metric.name)}: {change_arms(metric)}"
