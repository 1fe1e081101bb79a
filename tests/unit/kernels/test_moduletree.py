from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.kernels.debian.apt import AptArchive, Package
from orchestrator.kernels.module.moduletree import ModuleTree
from orchestrator.kernels.source.buildroot import BuildRoot
from orchestrator.kernels.source.debsource import DebSource

PROGRAM = "usr/lib/linux-kbuild-7.3/scripts/asn1_compiler"
NO_RULE = (
    "make[4]: *** No rule to make target 'crypto/ecrdsa_params.asn1.h', needed by"
    " 'crypto/ecrdsa.o'.\n"
)


@pytest.fixture
def module_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleTree:
    """Parts of a source with one Makefile, and a make that prints a recorded dry run if it has
    the ASN.1 compiler. The headers have a link to the scripts of another package."""
    cache = Cache(tmp_path)
    headers = tmp_path / "layer/usr/src/linux-headers-7.3-cloud-amd64"
    headers.mkdir(parents=True)
    (headers / "scripts").symlink_to("../../lib/linux-kbuild-7.3/scripts")
    (tmp_path / "source/crypto").mkdir(parents=True)
    (tmp_path / "source/crypto/Makefile").touch()

    def run(_: BuildRoot, argv: object, *, log: Path, layers: Sequence[Path], **__: object) -> int:
        has_program = any((layer / PROGRAM).exists() for layer in layers)
        recorded = Path(__file__).with_name("dry-run-7.3-crypto.txt").read_text()
        log.write_text(recorded if has_program else NO_RULE)
        return 0

    monkeypatch.setattr(BuildRoot, "run", run)
    monkeypatch.setattr(BuildRoot, "digest", "root")
    monkeypatch.setattr(DebSource, "names", {"crypto/Makefile"})
    monkeypatch.setattr(DebSource, "headers_layer", tmp_path / "layer")
    monkeypatch.setattr(DebSource, "tree", lambda *_: tmp_path / "source")
    package = Package("linux-source-7.3", "7.3-1", "linux", "linux-source-7.3.deb", "0" * 64)
    common = replace(package, name="linux-headers-7.3-common")
    source = DebSource("7.3-cloud-amd64", "7.3-1", AptArchive(("trixie",), cache), package,
                       (common,), cache)  # fmt: skip
    return ModuleTree(source, BuildRoot(tmp_path / "root", tmp_path), cache)


def test_sources_that_a_missing_program_generates(module_tree: ModuleTree) -> None:
    """The headers lack asn1_compiler, on which kbuild's rules for *.asn1.c and *.asn1.h depend."""
    objects = module_tree.objects(["crypto"])
    assert objects.built_in == {"crypto/ecdsa-x962.o", "crypto/ecdsasignature.asn1.o"}
    assert objects.modules == {
        "crypto/ecrdsa_generic": {"crypto/ecrdsa.o", "crypto/ecrdsa_params.asn1.o"}
    }


def test_other_sources_that_cannot_be_made(
    module_tree: ModuleTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.PROGRAM", "other")
    with pytest.raises(ScenarioError) as caught:
        module_tree.objects(["crypto"])
    assert caught.value.reason == "makefile-unreadable"
    assert "crypto/ecrdsa_params.asn1.h" in caught.value.evidence
