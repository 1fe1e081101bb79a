"""Read and write ci/proofs.toml: the content with which each group's full tests passed. Only the
test runner writes it. It is committed with the content, so that a new machine knows it, too."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ci.lanes.groups import ROOT

FILE = ROOT / "ci/proofs.toml"
_HEAD = """\
# Written by ci/test.sh when all tests of a group have passed; not to be edited.
# content: of the files that the group depends on. versions: of the packages in its machines.
# seconds: what its full tests took.

"""


@dataclass(frozen=True)
class Proof:
    content: str
    versions: str
    seconds: int
    date: str


def read_proofs(file: Path = FILE) -> dict[str, Proof]:
    """Return group -> proof; empty if there is no file. Raises ValueError for a damaged one."""
    if not file.exists():
        return {}
    try:
        tables = tomllib.loads(file.read_text())
        return {name: Proof(**keys) for name, keys in tables.items()}
    except (tomllib.TOMLDecodeError, TypeError, AttributeError) as exc:
        raise ValueError(
            f"{file}: {exc}; restore it by git, or remove it: then nothing counts as proven"
        ) from exc


def write_proofs(proofs: Mapping[str, Proof], file: Path = FILE) -> None:
    """Write a line for each group to a file beside and rename it."""
    lines = "".join(
        f'{name} = {{ content = "{proof.content}", versions = "{proof.versions}",'
        f' seconds = {proof.seconds}, date = "{proof.date}" }}\n'
        for name, proof in sorted(proofs.items())
    )
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_text(_HEAD + lines)
    beside.rename(file)
