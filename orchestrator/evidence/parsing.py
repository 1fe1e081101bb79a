"""Parse JSON evidence into typed values. A flaw is found here, with its file and key; whatever
takes the values afterwards relies on their types."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import EvidenceError


class Evidence(BaseModel):
    """Base of the models. Types are not converted: "1" is no number, and true is none either.
    Unknown keys are ignored, because a newer version may write more."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", allow_inf_nan=False, populate_by_name=True,
        use_attribute_docstrings=True,
    )  # fmt: skip


Bytes = Annotated[int, Field(ge=0, lt=1 << 64)]
"""Size or address of x86-64, in bytes."""
Count = Annotated[int, Field(ge=0, lt=1 << 63)]

Model = TypeVar("Model", bound=Evidence)


def parse_json(model: type[Model], text: str, source: str) -> Model:
    """Parse a JSON document. `source` names the file, or the agent that printed it. Raises
    EvidenceError (`bad-evidence`) with the source and the key of the first flaw."""
    try:
        return model.model_validate_json(text)
    except ValidationError as exc:
        flaws = exc.errors(include_url=False, include_context=False, include_input=False)
        key = ".".join(map(str, flaws[0]["loc"]))
        place = f" at {key}" if key else ""
        raise EvidenceError(
            f"{source} has a flaw{place}: {flaws[0]['msg']}", reason="bad-evidence"
        ) from exc
