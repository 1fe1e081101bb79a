"""Programs that are missing, hang, are killed, fail, or print without end."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.base.cache import Cache
from orchestrator.machine.runner import images
from tests.faults.place import NOBODY, Fault, namespace
from tests.faults.test_folders import DEB

NOT_FOUND = {
    "qemu": ("qemu-system-x86_64", "qemu-kvm"),
    "mmdebstrap": ("mmdebstrap",),
    "ssh": ("ssh",),
    "python3": ("python3",),
    "mke2fs": ("mke2fs",),
}


@pytest.mark.parametrize("names", NOT_FOUND.values(), ids=NOT_FOUND)
def test_program_of_a_run_is_missing(fault: Fault, names: tuple[str, ...]) -> None:
    """The doctor looks in PATH and in folders of its own (guests/agents/checkup.py)."""
    place = fault.place
    path = place.programs(*names)
    # /dev/null is not executable, so shutil.which() does not find what it hides. The interpreter
    # that runs barometer itself is never hidden.
    places = [] if "python3" in names else places_of(names)
    hidden = "\n".join(f"mount --bind /dev/null {program}" for program in places)
    fault.ends("run", place.scenario(), "--out", "out", under=namespace(hidden), PATH=path)


def places_of(names: tuple[str, ...]) -> list[str]:
    folders = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/usr/libexec")
    return [str(p) for f in folders for n in names if (p := Path(f) / n).is_file()]


def test_ssh_is_missing_for_a_metal_host(fault: Fault) -> None:
    fault.ends("recover", "root@lab", PATH=fault.place.programs("ssh"))


def test_apt_is_missing(fault: Fault) -> None:
    place = fault.place
    path = place.programs("apt-get", "apt-cache", "apt-config")
    fault.ends("plan", place.scenario(DEB), PATH=path)


def test_git_is_missing_for_a_report(fault: Fault) -> None:
    """A report needs git only for the tester's name."""
    place = fault.place
    fault.ends("report", place.recorded(), PATH=place.programs("git"))


def test_git_is_missing_for_a_bisection(fault: Fault) -> None:
    place = fault.place
    (place.work / "linux/.git").mkdir(parents=True)
    fault.ends(
        "bisect", "--tree", "linux", "--good", "v1", "--bad", "v2", PATH=place.programs("git")
    )


def test_repository_is_broken(fault: Fault) -> None:
    (fault.place.work / "linux/.git").mkdir(parents=True)
    (fault.place.work / "linux/.git/HEAD").write_bytes(bytes(range(256)))
    fault.ends("bisect", "--tree", "linux", "--good", "v1", "--bad", "v2")


def test_qemu_is_too_old(fault: Fault) -> None:
    place = fault.place
    path = place.programs(scripts={"qemu-system-x86_64": "echo QEMU emulator version 7.2.9"})
    fault.ends("run", place.scenario(), "--out", "out", PATH=path)


def test_git_hangs(fault: Fault) -> None:
    place = fault.place
    path = place.programs(scripts={"git": "exec sleep 600"})
    shorter = {"orchestrator.run.judging.judgefolder._GIT_SECONDS": 0.5}
    fault.ends("report", place.recorded(), PATH=path, shorter=shorter)


def test_apt_hangs(fault: Fault) -> None:
    place = fault.place
    path = place.programs(scripts={"apt-get": "exec sleep 600"})
    shorter = {"orchestrator.kernels.debian.apt._UPDATE_SECONDS": 1.0}
    fault.ends("plan", place.scenario(DEB), PATH=path, shorter=shorter)


def test_ssh_hangs(fault: Fault) -> None:
    path = fault.place.programs(scripts={"ssh": "exec sleep 600"})
    shorter = {"orchestrator.machine.transport.remote._CONFIG_SECONDS": 1.0}
    fault.ends("recover", "root@lab", PATH=path, shorter=shorter)


@pytest.mark.parametrize(
    "script",
    ["kill -KILL $$", "echo no such luck >&2; exit 7", "echo No space left on device >&2; exit 1"],
    ids=["killed", "fails", "no-space"],
)
def test_image_builder(fault: Fault, script: str) -> None:
    place = fault.place
    path = place.programs(scripts={"mmdebstrap": script})
    fault.ends("run", place.scenario(), "--out", "out", PATH=path)


def test_depmod_fails(fault: Fault) -> None:
    """Barometer calls depmod by its path, so the failing one is mounted there."""
    place = fault.place
    path = place.programs(scripts={"depmod": "echo broken >&2; exit 1"})
    under = namespace(f"mount --bind {path}/depmod /sbin/depmod")
    fault.ends("run", place.scenario(), "--out", "out", under=under)


def test_program_prints_without_end(fault: Fault) -> None:
    place = fault.place
    path = place.programs(scripts={"apt-config": "exec yes"})
    fault.ends("plan", place.scenario(DEB), PATH=path)


def host_image_is_there(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an empty image of the host into the cache."""

    def tar(path: Path, *_: object, **__: object) -> str:
        path.write_text("")
        return "base-files\t13\n"

    def disk(_: Path, __: Path, path: Path) -> None:
        path.write_text("")

    with monkeypatch.context() as patch:
        patch.setenv("BAROMETER_MIRROR", NOBODY)
        patch.setattr(images, "debian_tar", tar)
        patch.setattr(images, "disk_from_tar", disk)
        images.root_disk("host", images.read_recipe("host"), Cache(fault.place.cache))


def packed(fault: Fault, suffix: str, content: bytes) -> Path:
    """Return a scenario whose kernels have compressed modules with this content."""
    scenario = fault.place.scenario()
    for name in ("old", "new"):
        modules = fault.place.work / name / f"lib/modules/7.0.0-{name}/kernel/drivers"
        modules.mkdir()
        for module in ("vfio", "vfio_pci", "vfio_iommu_type1", "kvm_intel"):
            (modules / f"{module}.ko.{suffix}").write_bytes(content)
    return scenario


@pytest.mark.parametrize("suffix", ["zst", "xz"])
def test_module_cannot_be_unpacked(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """`zst`: zstd is missing. `xz`: the module is damaged."""
    scenario = packed(fault, suffix, b"not really")
    host_image_is_there(fault, monkeypatch)
    fault.ends("run", scenario, "--out", "out", PATH=fault.place.programs("zstd", "unzstd"))
