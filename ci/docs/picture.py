"""The picture of README: a boot of both kernels of the recorded main job, as an SVG file."""

from __future__ import annotations

from pathlib import Path

import orchestrator
from orchestrator.analysis.verdict.comparison import boots_of, middle_boots
from orchestrator.report.html.charts import boots_chart

_ROOT = Path(__file__).parents[2]
_STYLE = _ROOT / "orchestrator/report/html/templates/report.css"
_WIDTH = 960


def draw_main_job() -> str:
    run = orchestrator.load(_ROOT / "fixtures/recorded/debian-6.12-vs-7")
    chart = str(boots_chart(middle_boots(boots_of(run.comparison))))
    head, _, body = chart.partition(">")
    height = int(head.partition('height="')[2].partition('"')[0])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height + 20}"'
        f' viewBox="0 0 {_WIDTH} {height + 20}" role="img">\n'
        f"<style>{_STYLE.read_text()}\n"
        "svg { background: var(--paper); font: 13px system-ui, sans-serif; }</style>\n"
        f'<svg x="10" y="10" class="chart boots" width="{_WIDTH - 20}" height="{height}">'
        f"{body}\n</svg>\n"
    )
