"""The report as one HTML file that needs nothing else: no server, no network, no other file.

Everything that a template prints goes through `printable` and jinja2's escaping: consoles, logs
and messages are data from outside. The page's policy (CSP) allows only its own two scripts, named
by their hashes, and no loading of anything.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING

from orchestrator.analysis.verdict.comparison import Comparison
from orchestrator.evidence.plan import Plan
from orchestrator.report.html.page import MOST_CONFIG, build_page
from orchestrator.report.words.printable import escape_unprintable
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = files("orchestrator.report.html") / "templates"


def html_report(scenario: Scenario, comparison: Comparison, plan: Plan) -> str:
    """Return the whole page. `plan` is plan.json. The same values give the same text, byte for
    byte."""
    # Only here: no other command needs the libraries that draw.
    from markupsafe import Markup  # noqa: PLC0415
    from plotly.io.json import to_json_plotly  # noqa: PLC0415

    page = build_page(scenario, comparison, plan)
    return _environment().get_template("report.html.jinja").render(
        page=page,
        arms=ARMS,
        conditions=comparison.conditions,
        most_config=MOST_CONFIG,
        style=Markup(_file("report.css")),
        # plotly's JSON has no `<`, `>` or `/`, so nothing in it ends a script
        figures=Markup(to_json_plotly(page.figures)),
        **_scripts(),
    )  # fmt: skip


def render_page(template: str, page: object, figures: object) -> str:
    """Return a page of another kind: `page` is what its template reads, `figures` its charts by
    the id of their element."""
    from markupsafe import Markup  # noqa: PLC0415
    from plotly.io.json import to_json_plotly  # noqa: PLC0415

    return _environment().get_template(template).render(
        page=page, style=Markup(_file("report.css")), figures=Markup(to_json_plotly(figures)),
        **_scripts(),
    )  # fmt: skip


@cache
def _scripts() -> dict[str, object]:
    """Return the page's own two scripts and their hashes, which take half the time of a page."""
    from markupsafe import Markup  # noqa: PLC0415
    from plotly.offline import get_plotlyjs  # noqa: PLC0415

    plotly, script = Markup(get_plotlyjs()), Markup(_file("report.js"))
    return {"plotly": plotly, "script": script, "hashes": [_hash(plotly), _hash(script)]}


def _hash(script: str) -> str:
    """Return the hash that names a script in a content security policy."""
    return b64encode(sha256(script.encode()).digest()).decode()


def _file(name: str) -> str:
    return (_TEMPLATES / name).read_text("utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # noqa: PLC0415

    return Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        finalize=lambda value: escape_unprintable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
