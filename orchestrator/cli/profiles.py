"""Output of `barometer profile`: text, JSON, a page, a Perfetto trace; of one profile, or of two
that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.analysis.diagnosis.compare import compare_profiles
from orchestrator.analysis.diagnosis.diagnosis import Profile, analyse_profile
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.cli.output import print_json
from orchestrator.evidence.surveys.profile_facts import ProfileEvidence
from orchestrator.report.text.profile_change_text import json_change, text_change
from orchestrator.report.text.profile_text import (
    profile_json,
    profile_sentence,
    text_profile,
)


def show_profiles(
    recorded: Sequence[ProfileEvidence],
    *,
    as_json: bool,
    html: Path | None = None,
    perfetto: Path | None = None,
) -> None:
    """Judge the profiles and print them. Raises BenchError after that if the one that is shown is
    of a start that failed."""
    profiles = [analyse_profile(e.facts, e.files, e.xml) for e in recorded]
    if html is not None:
        from orchestrator.report.html.html import html_profile
        from orchestrator.report.html.profile_page import build_profile_page

        _write(html, html_profile(build_profile_page(*profiles)).encode())
    if perfetto is not None:
        from orchestrator.report.exports.perfetto import perfetto_trace

        _write(perfetto, b"".join(perfetto_trace(profile.timeline) for profile in profiles))
    if len(profiles) > 1:
        change = compare_profiles(*profiles)
        if as_json:
            print_json(json_change(change))
        else:
            print(text_change(change), end="")
        return
    _show_one(profiles[0], as_json=as_json)


def _show_one(profile: Profile, *, as_json: bool) -> None:
    if as_json:
        print_json(profile_json(profile))
    else:
        print(text_profile(profile), end="")
    if profile.facts.has_failed:
        hints = [advice.help for advice in profile.advice[:1]]
        raise BenchError(
            profile_sentence(profile), hint="".join(hints), reason=Reason.LIBVIRT_START
        )


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as exc:
        raise ScenarioError(
            f"{path} cannot be written: {exc.strerror}", reason=Reason.PATH
        ) from exc
