"""Events as an Atom feed (RFC 4287), and the last numbers as text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from xml.etree import ElementTree as ET

from orchestrator.base.printable import escape_unprintable
from orchestrator.history.events import Event
from orchestrator.history.moves import Trend
from orchestrator.history.rows import NightRow

_ATOM = "http://www.w3.org/2005/Atom"
_MOST_ENTRIES = 100
_NEVER = "1970-01-01T00:00:00+00:00"
"""Time of a feed without entries."""


def atom_feed(events: Sequence[Event], link: str = "") -> str:
    """Return the feed. `link`: address of the page; entries then link to it."""
    ET.register_namespace("", _ATOM)
    feed = ET.Element(f"{{{_ATOM}}}feed")
    updated = events[0].at if events else _NEVER
    _add(feed, "title", "Barometer: changes")
    _add(feed, "id", "urn:barometer:changes")
    _add(feed, "updated", updated)
    author = ET.SubElement(feed, f"{{{_ATOM}}}author")
    _add(author, "name", "barometer")
    for event in events[:_MOST_ENTRIES]:
        entry = ET.SubElement(feed, f"{{{_ATOM}}}entry")
        _add(entry, "title", event.title)
        _add(entry, "id", f"urn:barometer:{event.id}")
        _add(entry, "updated", event.at)
        if link:
            ET.SubElement(entry, f"{{{_ATOM}}}link", href=link)
        _add(entry, "content", "\n".join(event.lines) or event.title)
    ET.indent(feed)
    return ET.tostring(feed, encoding="unicode", xml_declaration=True) + "\n"


def _add(parent: ET.Element, name: str, text: str) -> None:
    ET.SubElement(parent, f"{{{_ATOM}}}{name}").text = escape_unprintable(text)


def prometheus_text(trends: Iterable[Trend], nights: Sequence[NightRow]) -> str:
    """Return the last number of each series, for node_exporter's textfile collector."""
    samples: dict[str, list[str]] = {name: [] for name in _HELP}
    for trend in trends:
        if not trend.points:
            continue
        last = trend.points[-1]
        labels = trend.series._asdict()
        if last.ratio is not None:
            samples["barometer_ratio"].append(_sample(labels, last.ratio))
        for arm, value in (("baseline", last.baseline), ("candidate", last.candidate)):
            samples["barometer_median"].append(_sample({**labels, "arm": arm}, value))
        is_red = last.verdict == "regressed"
        samples["barometer_regressed"].append(_sample(labels, float(is_red)))
    newest = {(night.machine, night.scenario): night for night in nights}  # the last one counts
    for (machine, scenario), night in newest.items():
        labels = {"machine": machine, "scenario": scenario}
        samples["barometer_night_exit_code"].append(_sample(labels, float(night.exit_code)))
        if night.put_back is not None:
            samples["barometer_put_back"].append(_sample(labels, float(night.put_back)))
    return "".join(_format_samples(samples))


_HELP = {
    "barometer_ratio": "Candidate / baseline in the last run; above 1 the candidate is dearer.",
    "barometer_median": "Median of an arm in the last run.",
    "barometer_regressed": "1 if the metric regressed in the last run.",
    "barometer_night_exit_code": "Exit code of the last night.",
    "barometer_put_back": "1 if the machine is as it was before the last night.",
}


def _format_samples(samples: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for name, values in samples.items():
        if values:
            yield f"# HELP {name} {_HELP[name]}\n# TYPE {name} gauge\n"
            yield from (f"{name}{value}\n" for value in values)


def _sample(labels: Mapping[str, str], value: float) -> str:
    inner = ",".join(f'{name}="{_escape(text)}"' for name, text in labels.items())
    return f"{{{inner}}} {value!r}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
