from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci.lanes.proofs import Proof, read_proofs, write_proofs

digests = st.text("0123456789abcdef", min_size=16, max_size=16)
proofs = st.builds(
    Proof, digests, digests, st.integers(0, 9999), st.dates().map(lambda day: day.isoformat())
)


@given(st.dictionaries(st.sampled_from(["metal", "main-job", "exact"]), proofs))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, found: dict[str, Proof]
) -> None:
    file = tmp_path_factory.mktemp("proofs") / "proofs.toml"
    write_proofs(found, file)
    assert read_proofs(file) == found
    assert [path.name for path in file.parent.iterdir()] == ["proofs.toml"]


def test_without_a_file_nothing_is_proven(tmp_path: Path) -> None:
    assert read_proofs(tmp_path / "proofs.toml") == {}


@pytest.mark.parametrize("text", ["metal", "metal = 1", 'metal = { content = "x" }', "metal = {"])
def test_damaged_file_is_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    file = tmp_path / "proofs.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"proofs\.toml: .*restore it by git"):
        read_proofs(file)
