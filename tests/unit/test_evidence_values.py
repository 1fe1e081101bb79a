"""Evidence with one value that barometer did not write: it is judged, or refused with the name of
its file and key. Anything else would be a bug."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from orchestrator.analysis.trial import read_result
from orchestrator.base.errors import EvidenceError
from orchestrator.evidence.layout import RunDir, TrialDir
from orchestrator.run.judging.judge import judge
from tests.unit.examples import share
from tests.unit.fabricated import sealed_map_trial
from tests.unit.manifests import PLAN
from tests.unit.recorded import copied, sealed
from tests.unit.scenarios import MAPS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
BUILT = {
    "from": "tree:linux", "compiler": "gcc 14", "build_root": "b", "image_sha256": "i",
    "source": {"kind": "git", "path": "/src", "commit": "c", "tree": "t", "describe": "v7.3"},
    "series": [{"origin": "fix.mbox", "subject": "vfio: x", "digest": "s"}],
    "config": {"sha256": "c", "asked": ["CONFIG_A=y"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of maps, of kernels that were built from source."""
    folder = tmp_path_factory.mktemp("run")
    for number, arm in enumerate(("baseline", "candidate"), 1):
        sealed_map_trial(folder / "trials", arm, series=number == 2, number=number,
                         passes=("plain",))  # fmt: skip
    text = MAPS + '[trace]\npasses = ["plain"]\n[device]\nbar = "4GiB"\n'
    text += '[map]\nsizes = ["1GiB", "2GiB", "full"]\nalignment = ["1GiB", "2MiB", "4KiB"]\n'
    (folder / "scenario.toml").write_text(text)
    old, new = PLAN["kernels"]["baseline"], PLAN["kernels"]["candidate"]
    series = [*BUILT["series"], {"origin": "a..b", "subject": "y", "digest": "z"}]
    plan = PLAN | {
        "accel": "exact", "guest_kernel": None,
        "kernels": {"baseline": old | {"provenance": BUILT},
                    "candidate": new | {"provenance": BUILT | {"series": series}}},
        "arm_settings": {"baseline": {"cmdline": "", "parameters": {}, "sysfs": {}},
                         "candidate": {"cmdline": "", "parameters": {}, "sysfs": {}}},
        "trials": [{"name": "0001-baseline", "pair": 1, "arm": "baseline", "passes": ["plain"]},
                   {"name": "0002-candidate", "pair": 1, "arm": "candidate", "passes": ["plain"]}],
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


@st.composite
def paths(draw: st.DrawFn, document: Any) -> tuple[str | int, ...]:
    """Draw the path of a value: at each level one of the keys, or stop."""
    path: list[str | int] = []
    while True:
        keys = [*document] if isinstance(document, dict) else [*range(len(document))]
        path.append(draw(st.sampled_from(keys)))
        document = document[path[-1]]
        if not isinstance(document, dict | list) or not document or draw(st.booleans()):
            return tuple(path)


def replaced(document: Any, path: tuple[str | int, ...], value: object) -> Any:
    changed = json.loads(json.dumps(document))
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


@share(0.5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["plan.json", "trials/0002-candidate/manifest.json"]), st.data())
def test_plan_or_manifest_with_any_value_is_judged_or_refused(
    run: Path, name: str, data: st.DataObject
) -> None:
    path = run / name
    whole = path.read_text()
    where = data.draw(paths(json.loads(whole)))
    path.write_text(json.dumps(replaced(json.loads(whole), where, data.draw(JSON))))
    flaw: EvidenceError | None = None
    try:
        judge(RunDir.open(run))
    except EvidenceError as exc:
        flaw = exc
    finally:
        path.write_text(whole)
    if flaw is not None and flaw.reason == "bad-evidence":
        assert str(path) in flaw.message
        assert str(where[0]) in flaw.message


FILES = ["map.json", "host/facts.json", "guest-0/facts.json", "manifest.json"]


@share(0.5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), st.data())
def test_trial_with_any_value_is_judged_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    trial = copied(tmp_path_factory.mktemp("value"))
    document = json.loads((trial / name).read_text())
    where = data.draw(paths(document))
    (trial / name).write_text(json.dumps(replaced(document, where, data.draw(JSON))))
    if name == "manifest.json":
        with contextlib.suppress(EvidenceError):  # the test above sees to its words
            assert read_result(TrialDir.open(trial)).kind in ("measured", "failed", "invalid")
        return
    result = read_result(sealed(trial))
    assert result.kind in ("measured", "failed", "invalid")
    if result.reason == "bad-evidence":
        assert name in result.message
