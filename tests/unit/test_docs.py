"""The documentation: what a program writes is what it writes now, each command that is shown runs
or is one of the program's, each link leads somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ci.docs.outputs import list_commands
from ci.docs.pages import PAGES, make_page, path_of
from ci.docs.scenario import TITLES, list_models
from orchestrator.cli.entry import app

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "ci/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"(?ms)^ *```(\w*)\n(.*?)^ *```$")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("name", PAGES)
def test_page_is_what_the_program_writes(name: str) -> None:
    assert make_page(name) == path_of(name).read_text("utf-8"), "run `python -m ci.docs`"


def test_readme_is_short_and_shows_what_is_printed() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    assert len(list_commands(text)) >= 4


def test_site_is_built_without_a_warning() -> None:
    subprocess.run([ROOT / "ci/docs.sh"], check=True, timeout=300, capture_output=True)
    page = (ROOT / "site/index.html").read_text()
    loaded = re.findall(r'(?:src|href)="(https?://[^"]*)"', page)
    assert [address for address in loaded if "zensical.org" not in address] == []


@pytest.mark.parametrize("path", TEXTS[:2], ids=named)
def test_links_beside_the_site_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_table_of_a_scenario_is_in_the_reference() -> None:
    assert TITLES.keys() == list_models()


def shown(text: str) -> Iterator[str]:
    """Yield the commands of barometer's that a page shows, options in brackets included."""
    for _, block in _FENCE.findall(text):
        joined = re.sub(r"\n {10,}(?=\[|-)", " ", block.replace("\\\n", " "))
        for line in joined.splitlines():
            if match := re.fullmatch(
                r"(?:\$ )?(?:\.venv/bin/)?barometer ([a-z]+(?: .*)?)", line.strip()
            ):
                yield match[1]


def find_verb(words: list[str]) -> tuple[Any, list[str]]:
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_every_command_that_is_shown_is_one(path: Path) -> None:
    for command in shown(path.read_text()):
        plain = re.sub(r"[\[\]]|\.\.\.", " ", command.partition(" #")[0].partition(" | ")[0])
        words = shlex.split(re.split(r"   +", plain)[0].replace("|", " "))
        verb, rest = find_verb(words)
        assert verb.name not in (None, "barometer"), command
        known = {option for parameter in verb.params for option in parameter.opts}
        known |= {option for p in verb.params for option in p.secondary_opts} | {"--help"}
        wrong = {word.partition("=")[0] for word in rest if word.startswith("--")} - known - {"--"}
        assert not wrong, f"barometer {command}"
