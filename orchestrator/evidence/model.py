"""The base of all evidence models, and the one place where evidence becomes typed values.

A model is strict about types, so that what it holds can be trusted. It keeps keys that it does not
know, because a newer version may have written them. A key that older recorded runs lack has a
default, and its docstring says so. Numbers are bounded by what 64 bits hold.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from orchestrator.base.errors import EvidenceError
from orchestrator.base.plainfile import find_below, read_plain
from orchestrator.base.reasons import Reason
from orchestrator.formats.abi import PAGE
from orchestrator.scenario.vocabulary import ArmName

_PART = r"(?!\.\.?(?:/|$))[\w.+@:,-]+"
_FILE = re.compile(f"{_PART}(?:/{_PART})*", re.ASCII)
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
Part = TypeVar("Part")


def _check_file_name(name: str) -> str:
    if len(name) > 250 or not _FILE.fullmatch(name):
        raise ValueError("not the name of a file below the folder")
    return name


FileName = Annotated[str, AfterValidator(_check_file_name)]
"""Path of a file, relative to the folder of the evidence. It never leaves that folder."""
Count = Annotated[int, Field(ge=0, lt=1 << 64)]
Change = Annotated[int, Field(gt=-(1 << 63), lt=1 << 63)]
"""Growth of a count; negative if it shrank."""
Size = Annotated[int, Field(ge=PAGE, lt=1 << 63, multiple_of=PAGE)]
"""Bytes of a mapping: whole pages, at least one."""
Address = Annotated[int, Field(ge=0, lt=1 << 64, multiple_of=PAGE)]
"""Address of a page."""
Seconds = Annotated[float, Field(ge=0)]
AccelName = Literal["kvm", "tcg", "exact", "none"]
"""Accelerator of the host under test; none: a real machine."""


class BothArms(Evidence, Generic[Part]):
    """A value for each arm."""

    baseline: Part
    candidate: Part

    def __getitem__(self, arm: ArmName) -> Part:
        return self.baseline if arm == "baseline" else self.candidate


def parse_evidence(model: type[Model], text: str | bytes, name: str) -> Model:
    """Parse a JSON text as `model`. Raises EvidenceError that names `name` and the key if the text
    does not have the model's form."""
    try:
        return model.model_validate_json(_without_lone_surrogates(text))
    except ValidationError as exc:
        raise EvidenceError(f"{name}: {_describe(exc)}", reason=Reason.BAD_EVIDENCE) from exc


def read_evidence(model: type[Model], path: Path, name: str = "") -> Model:
    """Read a JSON file as `model`. Raises EvidenceError if the file is missing, cannot be read or
    does not have the model's form. `name` is the file's name in messages; default: the path."""
    try:
        content = read_plain(find_below(path.parent, path.name))
    except FileNotFoundError as exc:
        raise EvidenceError(f"{name or path} is missing", reason=Reason.MISSING_EVIDENCE) from exc
    except OSError as exc:
        message = f"{name or path} cannot be read: {exc}"
        raise EvidenceError(message, reason=Reason.BAD_EVIDENCE) from exc
    return parse_evidence(model, content, name or str(path))


def _without_lone_surrogates(text: str | bytes) -> str | bytes:
    """Replace the lone surrogates of a JSON text. Python writes them for file names that are no
    UTF-8, and pydantic's parser refuses them."""
    content = text.encode(errors="replace") if isinstance(text, str) else text
    if b"\\ud" not in content.lower():
        return text
    try:
        return json.dumps(json.loads(content), ensure_ascii=False).encode(errors="replace")
    except (ValueError, RecursionError):
        return text  # no JSON: pydantic says so


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
