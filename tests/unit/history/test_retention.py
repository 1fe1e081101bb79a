"""Old nights are removed from the disk, red ones later, and never what the store has not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import orchestrator
from orchestrator.base.folderlock import only_writer
from orchestrator.evidence.layout import RunDir
from orchestrator.history.rows import RunRow
from orchestrator.history.store import Store
from orchestrator.run.nights.remember import make_stored
from orchestrator.run.nights.retention import Kept, digest_evidence, prune_nights
from tests.unit.recorded import RUN, copied_run


def add_night(store: Store, folder: Path, day: int, **facts: object) -> Path:
    """Make a night that has a plan and no trial; add it with these facts."""
    folder.mkdir(parents=True)
    shutil.copy(RUN / "scenario.toml", folder)
    plan = json.loads((RUN / "plan.json").read_text()) | {"accel_reason": f"night {day}"}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "trials").mkdir()
    stored = make_stored(orchestrator.load(folder))
    row = stored.run._replace(
        key=str(day),
        started=f"2026-01-{day + 1:02}T00:00:00+00:00",
        **facts,  # type: ignore[arg-type]
    )
    store.add(stored.__class__(row, (), (), (), (), stored.conditions))
    return folder


RED = {"exit_code": 1, "verdict": "regressed", "measured": 2}
GREEN = {"exit_code": 0, "verdict": "equivalent", "measured": 2}
LOST = {"exit_code": 4, "verdict": "invalid", "measured": 0}


def expected(kinds: Sequence[dict[str, object]], keep: int, keep_red: int) -> set[int]:
    """Return the days that stay."""
    numbered = [*enumerate(kinds)][::-1]
    last = next((day for day, kind in numbered if kind["measured"]), None)
    return {
        day for number, (day, kind) in enumerate(numbered)
        if number < (keep_red if kind is RED else keep) or day == last
    }  # fmt: skip


@settings(max_examples=15)
@given(
    kinds=st.lists(st.sampled_from([RED, GREEN, LOST]), min_size=1, max_size=8),
    keep=st.integers(1, 4), more=st.integers(0, 4),
)  # fmt: skip
def test_what_stays_is_what_the_rule_says(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[dict[str, object]], keep: int, more: int
) -> None:
    folder = tmp_path_factory.mktemp("nights")
    with Store.open(str(folder / "history.db")) as store:
        for day, kind in enumerate(kinds):
            add_night(store, folder / f"night{day}", day, **kind)
        gone = [*prune_nights(store, folder, keep, keep + more)]
        assert len(store.runs()) == len(kinds)
    left = {int(path.name.removeprefix("night")) for path in folder.glob("night*")}
    assert left == expected(kinds, keep, keep + more)
    assert len(gone) == len(kinds) - len(left)
    assert not [*folder.glob(".*")]


def test_what_the_store_has_not_is_never_removed(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "history.db")) as store:
        nights = tmp_path / "nights"
        for day in range(6):
            add_night(store, nights / str(day), day, **GREEN)
        copied_run(nights / "unknown")
        (nights / "0/plan.json").write_text("{")  # damaged since
        plan = nights / "1/plan.json"
        plan.write_text(plan.read_text().replace("night 1", "night one"))  # another evidence
        (nights / "notes").mkdir()
        (nights / "elsewhere").symlink_to(nights / "2")
        with only_writer(nights / "2"):
            seen = [*prune_nights(store, nights, 1, 1)]
        kept = {item.folder.name for item in seen if isinstance(item, Kept)}
        assert kept == {"0", "1", "2", "unknown"}
        assert {item.name for item in seen if isinstance(item, Path)} == {"3", "4"}
        assert {path.name for path in nights.iterdir()} == {
            "0", "1", "2", "5", "unknown", "notes", "elsewhere"
        }  # fmt: skip


def test_a_removal_that_was_killed_is_finished(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "history.db")) as store:
        night = add_night(store, tmp_path / "nights/0", 0, **GREEN)
        night.rename(tmp_path / "nights/.old.removed")
        assert [*prune_nights(store, tmp_path / "nights", 1, 1)] == []
        assert [*(tmp_path / "nights").iterdir()] == []


def test_the_digest_is_that_of_the_store(tmp_path: Path) -> None:
    run = copied_run(tmp_path / "run")
    row: RunRow = make_stored(orchestrator.load(run)).run
    assert digest_evidence(RunDir.open(run)) == row.digest
