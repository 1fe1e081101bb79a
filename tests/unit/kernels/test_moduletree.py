from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.base.cache import Cache
from orchestrator.kernels.debian.apt import AptArchive, Package
from orchestrator.kernels.module.moduletree import ModuleTree
from orchestrator.kernels.source.buildroot import BuildRoot
from orchestrator.kernels.source.debsource import DebSource

PROGRAM = "usr/lib/linux-kbuild-7.3/scripts/asn1_compiler"
HEADER = "include/scsi/scsi_devinfo.h"
NO_RULE = (
    "make[4]: *** No rule to make target 'crypto/ecrdsa_params.asn1.h', needed by"
    " 'crypto/ecrdsa.o'.\n"
)
RELEASE, COMMON = "7.3.4+deb13-cloud-amd64", "linux-headers-7.3.4+deb13-common"


def recorded(name: str) -> str:
    """Return what `make -nk` printed for a part of Debian's source of 7.3.4, word for word."""
    path = Path(__file__).with_name(f"dry-run-7.3-{name}.txt.gz")
    return gzip.decompress(path.read_bytes()).decode()


@pytest.fixture
def module_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleTree:
    """Parts of a source, and a make that prints recorded dry runs if it has the ASN.1 compiler.
    The headers have a link to the scripts of another package."""
    cache = Cache(tmp_path)
    headers = tmp_path / f"layer/usr/src/linux-headers-{RELEASE}"
    headers.mkdir(parents=True)
    (headers / "scripts").symlink_to("../../lib/linux-kbuild-7.3/scripts")
    names = {HEADER, *(f"{room}/Makefile" for room in ("crypto", "certs", "drivers/scsi"))}
    for name in names:
        (tmp_path / "source" / name).parent.mkdir(parents=True)
        (tmp_path / "source" / name).touch()

    def run(
        _: BuildRoot, argv: Sequence[str], *, log: Path, work: Path, layers: Sequence[Path],
        **__: object,
    ) -> int:  # fmt: skip
        name = argv[-1].rstrip("/").rpartition("/")[2]
        if name == "scsi" and (work / "tree" / HEADER).exists():
            name = "scsi-header"
        text = recorded(name)
        if not any((layer / PROGRAM).exists() for layer in layers):
            text = f"{text}{NO_RULE}"
        log.write_text(text)
        return 0

    monkeypatch.setattr(BuildRoot, "run", run)
    monkeypatch.setattr(BuildRoot, "digest", "root")
    monkeypatch.setattr(DebSource, "names", frozenset(names))
    monkeypatch.setattr(DebSource, "headers_layer", tmp_path / "layer")
    monkeypatch.setattr(DebSource, "tree", lambda *_: tmp_path / "source")
    package = Package("linux-source-7.3", "7.3.4-1", "linux", "linux-source-7.3.deb", "0" * 64)
    common = replace(package, name=COMMON)
    source = DebSource(RELEASE, "7.3.4-1", AptArchive(("trixie",), cache), package, (common,),
                       cache)  # fmt: skip
    return ModuleTree(source, BuildRoot(tmp_path / "root", tmp_path), cache)


def test_sources_that_a_missing_program_generates(module_tree: ModuleTree) -> None:
    """The headers lack asn1_compiler, on which kbuild's rules for *.asn1.c and *.asn1.h depend."""
    objects = module_tree.objects(["crypto"])
    assert (len(objects.modules), len(objects.built_in), objects.failures) == (56, 62, ())
    assert {"crypto/ecdsa-x962.o", "crypto/ecdsasignature.asn1.o"} <= objects.built_in
    assert objects.modules["crypto/ecrdsa_generic"] == {
        "crypto/ecrdsa.o", "crypto/ecrdsa_params.asn1.o", "crypto/ecrdsa_pub_key.asn1.o",
    }  # fmt: skip


def test_header_that_a_list_is_generated_from(module_tree: ModuleTree) -> None:
    """kbuild looks for it in the folder of the modules."""
    objects = module_tree.objects(["drivers/scsi"])
    assert objects.rooms == {"drivers/scsi", HEADER}
    assert (len(objects.modules), objects.failures) == (25, ())
    assert objects.modules_of("drivers/scsi/scsi_devinfo.c") == ["drivers/scsi/scsi_mod"]


def test_key_that_nobody_else_has(module_tree: ModuleTree) -> None:
    """Debian signs modules with a key that no package has."""
    objects = module_tree.objects(["certs"])
    assert objects.built_in == {
        "certs/blacklist.o", "certs/blacklist_hashes.o", "certs/system_keyring.o",
    }  # fmt: skip
    (failure,) = objects.failures
    assert failure.startswith("No rule to make target 'output/signing_key.pem'")
    assert not objects.is_compiled("certs/system_certificates.S")


def test_other_sources_that_cannot_be_made(
    module_tree: ModuleTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.PROGRAM", "other")
    objects = module_tree.objects(["crypto"])
    assert any("crypto/ecrdsa_params.asn1.h" in failure for failure in objects.failures)
