"""Identifiers of content: sha256 of files and of keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.base.plainfile import open_plain


def sha256_file(path: Path) -> str:
    """Return the digest of a plain file. Raises OSError for anything else."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(key: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the sha256 of a key's canonical JSON."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
