"""The list of pages that a program writes. tests/unit/test_docs.py fails if a page is another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ci.docs.man import format_man_page
from ci.docs.metrics import format_metrics
from ci.docs.outputs import write_outputs
from ci.docs.picture import draw_main_job
from ci.docs.reasons import format_reasons
from ci.docs.scenario import format_keys
from ci.docs.verbs import format_verbs

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- written by ci/docs/ -->\n", "<!-- end -->\n"


def _between(make: Callable[[], str]) -> Callable[[str], str]:
    """Return a writer of what stands between a page's two markers."""

    def write(text: str) -> str:
        before, found, rest = text.partition(BEGIN)
        _, ends, after = rest.partition(END)
        if not found or not ends:
            raise ValueError(f"the page lacks {BEGIN}or {END}")
        return f"{before}{BEGIN}\n{make()}\n{END}{after}"

    return write


PAGES: dict[str, Callable[[str], str]] = {
    "README.md": write_outputs,
    "docs/reference/metrics.md": _between(format_metrics),
    "docs/reference/reasons.md": _between(format_reasons),
    "docs/reference/scenario.md": _between(format_keys),
    "docs/reference/verbs.md": _between(format_verbs),
    "docs/tutorials/series.md": write_outputs,
    "docs/tutorials/slow-boot.md": write_outputs,
    "docs/tutorials/nightly.md": write_outputs,
    "docs/man/barometer.1": lambda _text: format_man_page(),
    "docs/pictures/main-job.svg": lambda _text: draw_main_job(),
}
"""Path of a page -> what it has to be, given what it is. The text around what is written stays."""


def path_of(name: str) -> Path:
    return ROOT / name


def make_page(name: str) -> str:
    path = path_of(name)
    return PAGES[name](path.read_text("utf-8") if path.exists() else "")
