"""Inputs of our own making, each for a kind that real ones are of (tests/corpus/): what is read of
each, and that no change of their bytes upsets a reader."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError, ScenarioError
from orchestrator.kernels.series.series import read_series
from orchestrator.kernels.source.config import read_config
from tests.unit.examples import NUMBER, share

CORPUS = Path(__file__).parents[2] / "corpus"
SERIES = {
    "attachment.eml": ["one.c"], "blank-line-first.eml": ["one.c"], "crlf.eml": ["one.c"],
    "dateless.mbox": ["one.c", "two.c"], "flowed.eml": ["one.c"], "folded.eml": ["one.c"],
    "html.eml": ["one.c"], "in-body.eml": ["one.c"], "interdiff.mbox": ["one.c", "two.c"],
    "latin.eml": ["one.c"], "names-alike.patch": ["one.c"], "names-in-message.eml": ["one.c"],
    "not-unified.patch": "no-diff", "nothing.eml": "no-diff", "nul-in-reply.mbox": ["one.c"],
    "nul.patch": "binary-file", "replies-alone.mbox": "no-diff",
    "reply-encoded.mbox": ["one.c", "two.c"], "stable.eml": ["one.c"],
    "stable.mbox": ["one.c", "two.c"], "stray-and-gap.mbox": "incomplete-series",
    "stray.mbox": "mixed-series", "unordered.mbox": ["one.c", "two.c"],
    "versions.mbox": "mixed-series",
}  # fmt: skip
CONFIGS = {
    "comments.config": {"HZ_100": "n", "VFIO": "m"}, "mark.config": {"HZ_100": "n", "VFIO": "m"},
    "no-line.config": "config", "spaced.config": "config",
    "values.config": {"NR_CPUS": "8", "PHYSICAL_START": "0x1000000", "VFIO": "m",
                      "LOCALVERSION": '"-a \\"b\\" # c"'},
}  # fmt: skip


@pytest.mark.parametrize(("folder", "table"), [("series", SERIES), ("config", CONFIGS)])
def test_every_input_has_an_answer(folder: str, table: dict[str, object]) -> None:
    assert {path.name for path in (CORPUS / folder).iterdir()} == table.keys()


@pytest.mark.parametrize(("name", "answer"), SERIES.items())
def test_series_is_read_or_refused(name: str, answer: list[str] | str, tmp_path: Path) -> None:
    def read() -> list[str]:
        patches = read_series([str(CORPUS / "series" / name)], None, Cache(tmp_path))
        assert all(patch.text.count(b"\n+int b") <= 1 for patch in patches)
        assert not any(b"=3D" in patch.text for patch in patches)
        return [file for patch in patches for file in patch.files]

    if isinstance(answer, str):
        with pytest.raises(ScenarioError) as caught:
            read()
        assert caught.value.reason == answer
    else:
        assert read() == answer


@pytest.mark.parametrize(("name", "answer"), CONFIGS.items())
def test_fragment_is_read_or_refused(name: str, answer: dict[str, str] | str) -> None:
    path = str(CORPUS / "config" / name)
    if isinstance(answer, str):
        with pytest.raises(ScenarioError) as caught:
            read_config([path])
        assert caught.value.reason == answer
    else:
        config = read_config([path])
        assert {n: config.requested[n] for n, o in config.origins.items() if o == name} == answer


FUZZ = 15 if NUMBER > 200 else 2
"""Share of examples: with the profile `full`, both readers take about a minute."""


def read_any_series(path: Path) -> None:
    read_series([str(path)], None, Cache(path.parent / "cache"))


def read_any_config(path: Path) -> None:
    read_config([str(path)])


@share(FUZZ)
@pytest.mark.parametrize(
    ("folder", "read"), [("series", read_any_series), ("config", read_any_config)]
)
@given(data=st.data())
def test_changed_inputs_upset_no_reader(
    tmp_path_factory: pytest.TempPathFactory,
    folder: str,
    read: Callable[[Path], None],
    data: st.DataObject,
) -> None:
    every = sorted((CORPUS / folder).iterdir())
    content = data.draw(st.sampled_from(every)).read_bytes()
    for _ in range(data.draw(st.integers(1, 6))):
        begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        other = data.draw(st.sampled_from(every)).read_bytes()
        content = data.draw(st.sampled_from([
            content[:begin] + content[end:],
            content[:end] + content[begin:],
            content[:begin] + other + content[end:],
            content[:begin] + data.draw(st.binary(max_size=4)) + content[begin:],
            content[begin:end] * (100_000 // (end - begin + 1)),
        ]))[:100_000]  # fmt: skip
    path = tmp_path_factory.mktemp("changed") / "input"
    path.write_bytes(content)
    before = time.process_time()
    try:
        read(path)
    except BarometerError as error:
        assert str(path) in error.message  # noqa: PT017  # either outcome is right
    assert time.process_time() - before < 1
