"""The base of all evidence models, and the one place where evidence becomes typed values.

A model is strict about types, so that what it holds can be trusted. It keeps keys that it does not
know, because a newer version may have written them. A key that older recorded runs lack has a
default, and its docstring says so. Numbers are bounded by what 64 bits hold.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import EvidenceError
from orchestrator.reasons import Reason

_SHOWN = 80
"""Characters of a wrong value that a message quotes."""


class Evidence(BaseModel):
    """A JSON object of the evidence."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="allow", allow_inf_nan=False,
        use_attribute_docstrings=True,
    )  # fmt: skip

    def to_json(self) -> dict[str, object]:
        """Return the object as it was read: every key that was given, also unknown ones."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


Model = TypeVar("Model", bound=Evidence)

Count = Annotated[int, Field(ge=0, lt=1 << 64)]


def parse_evidence(model: type[Model], text: str | bytes, name: str) -> Model:
    """Parse a JSON text as `model`. Raises EvidenceError that names `name` and the key if the text
    does not have the model's form."""
    try:
        return model.model_validate_json(text)
    except ValidationError as exc:
        raise EvidenceError(f"{name}: {_describe(exc)}", reason=Reason.BAD_EVIDENCE) from exc


def _describe(invalid: ValidationError) -> str:
    """Describe the first flaw: its key, what is wrong, and the value."""
    flaws = invalid.errors(include_url=False, include_context=False)
    first = flaws[0]
    key = ".".join(str(part) for part in first["loc"]) or "the whole file"
    text = f"{key}: {first['msg']}"
    if first["type"] not in ("missing", "json_invalid"):
        text += f", not {_cut(first['input'])}"
    return text + (f" (and {len(flaws) - 1} more)" if len(flaws) > 1 else "")


def _cut(value: Any) -> str:
    # the repr of a huge integer is refused by Python (sys.get_int_max_str_digits)
    text = "a huge number" if isinstance(value, int) and value.bit_length() > 256 else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
