"""Made-up exact runs of kernels in folders, and what a bundle of them is changed into."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from orchestrator.base.cache import Cache
from orchestrator.base.hashing import sha256_file
from orchestrator.kernels.directory import copy_kernel
from orchestrator.run.bundles.record import BUNDLE
from orchestrator.scenario.kernel_forms import DirKernel
from orchestrator.scenario.vocabulary import ARMS
from tests.unit.fabricated import map_trial
from tests.unit.kernels.fakes import folder_kernel
from tests.unit.recorded import RUN, sealed
from tests.unit.scenarios import MAPS

SCENARIO = MAPS + (
    '[device]\nbar = "4GiB"\n[map]\nsizes = ["1GiB", "2GiB", "full"]\n'
    'alignment = ["1GiB", "2MiB", "4KiB"]\n[expect]\nbar_map_cost = "improved"\n'
)
RELEASES = {"baseline": "6.12.107", "candidate": "7.3.4"}


def exact_run(folder: Path, kernels: Path, cache: Cache, **facts: Any) -> Path:
    """Make a run of two trials with kernels that were built: folders that the cache has. `facts`:
    of each trial's manifest."""
    plan = json.loads((RUN / "plan.json").read_text())
    plan |= {"accel": "exact", "guest_kernel": None, "trials": []}
    folder.mkdir(parents=True)
    text = SCENARIO
    for number, arm in enumerate(ARMS, 1):
        place = kernels / arm
        if not place.exists():
            folder_kernel(place, RELEASES[arm])
            (place / "config").write_text(f"# {arm}\n")
        bundle = copy_kernel(DirKernel(dir=place), cache)
        name = "old" if arm == "baseline" else "new"
        text = text.replace(f'dir = "{name}"', f'dir = "{place}"')
        record = {"release": bundle.release, "source": f"dir:{place}", "digest": bundle.digest}
        plan["kernels"][arm] = record | {"provenance": {"from": f"dir:{place}"}}
        plan["trials"].append({"name": f"{number:04}-{arm}", "pair": 1, "arm": arm,
                               "passes": ["plain"]})  # fmt: skip
        trial = map_trial(
            folder / "trials", arm, series=number == 2, number=number,
            **{"kernel": record, **facts},
        )  # fmt: skip
        sealed(trial)
    (folder / "scenario.toml").write_text(text)
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def change_run(run: Path, arm: str, change: Callable[[dict[str, Any]], None], name: str) -> None:
    """Change a JSON file of an arm's trial as if it had been collected so."""
    (trial,) = (run / "trials").glob(f"*-{arm}")
    document = json.loads((trial / name).read_text())
    change(document)
    (trial / name).write_text(json.dumps(document))
    sealed(trial)


Entry = tuple[tarfile.TarInfo, bytes]


def read_entries(path: Path) -> list[Entry]:
    with tarfile.open(path) as archive:
        contents = [(entry, archive.extractfile(entry)) for entry in archive]
        return [(entry, content.read()) for entry, content in contents if content is not None]


def write_entries(path: Path, entries: list[Entry]) -> Path:
    with gzip.open(path, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for entry, content in entries:
            entry.size = len(content) if entry.isreg() else 0
            archive.addfile(entry, io.BytesIO(content))
    return path


def replace_content(entries: list[Entry], name: str, content: bytes) -> list[Entry]:
    """Replace a file, and its hash: its maker is not honest."""
    changed = [(e, content if e.name == name else c) for e, c in entries]
    record = json.loads(changed[0][1])
    assert changed[0][0].name == BUNDLE
    for entry, data in changed[1:]:
        if entry.name == name:
            record["files"][name] = sha256(data).hexdigest()
    return [(changed[0][0], json.dumps(record).encode()), *changed[1:]]


def list_tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }
