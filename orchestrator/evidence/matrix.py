"""matrix.json: the cells of a run of a scenario file with a [matrix]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from orchestrator.evidence.model import Evidence, FileName


class CellRecord(Evidence):
    """One combination of the factors' values, which is a run of its own."""

    name: str
    folder: FileName
    """Folder of the cell's run, relative to that of the matrix."""
    settings: dict[str, JsonValue]
    """Key of the scenario -> the cell's value, as the scenario file spells it."""


class MatrixRecord(Evidence):
    """matrix.json."""

    schema_: Literal[1] = Field(alias="schema")
    scenario: str
    """Name of the scenario."""
    cells: tuple[CellRecord, ...] = Field(min_length=1)
    """Cells that were requested so far, in the order of the scenario file."""
