"""The report as one HTML file that needs nothing else: no server, no network, no other file.

Everything that a template prints goes through `printable` and jinja2's escaping: consoles, logs
and messages are data from outside. The page's policy (CSP) allows only its own script, named by
its hash, and no loading of anything. Without the script the page lacks nothing but the button for
its theme.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING

from orchestrator.analysis.verdict.comparison import Comparison
from orchestrator.base.printable import escape_unprintable
from orchestrator.evidence.plan import Plan
from orchestrator.report.html.matrix_page import MatrixPage
from orchestrator.report.html.page import DIGESTS, MOST_CONFIG, build_page
from orchestrator.report.html.profile_page import ProfilePage
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = files("orchestrator.report.html") / "templates"


def html_report(scenario: Scenario, comparison: Comparison, plan: Plan) -> str:
    """Return the whole page. `plan` is plan.json. The same values give the same text, byte for
    byte."""
    page = build_page(scenario, comparison, plan)
    return _environment().get_template("report.html.jinja").render(
        page=page, arms=ARMS, conditions=comparison.conditions, most_config=MOST_CONFIG,
        digests=DIGESTS,
        **_assets(),
    )  # fmt: skip


def html_matrix(page: MatrixPage) -> str:
    """Return the whole page of a [matrix]."""
    return _environment().get_template("matrix.html.jinja").render(page=page, **_assets())


def html_profile(page: ProfilePage) -> str:
    """Return the whole page of a profile, or of two."""
    return _environment().get_template("profile.html.jinja").render(page=page, **_assets())


def html_page(template: str, **values: object) -> str:
    """Return a whole page from a template of this room."""
    return _environment().get_template(template).render(**values, **_assets())


@cache
def _assets() -> dict[str, object]:
    """Return the page's style, its script, and the script's hash."""
    from markupsafe import Markup  # noqa: PLC0415

    script = _file("report.js")
    return {
        "style": Markup(_file("report.css")), "script": Markup(script), "hash": _hash(script),
    }  # fmt: skip


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
