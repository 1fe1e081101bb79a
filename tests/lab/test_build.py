"""Kernels that are really built from source: the build root, the configuration, the series, the
proof.

Tests that apply to every source run on a whole kernel and on one that is pared down to a second of
compiling.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.base.cache import Cache, remove_tree
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.progress import Progress
from orchestrator.kernels import KernelBundle, check_kernel, materialise_kernel
from orchestrator.kernels.source.buildroot import build_root
from orchestrator.kernels.source.config import parse_config
from orchestrator.scenario.kernel_forms import SourceKernel, TreeKernel
from tests.lab.pared.tree import PARED_SERIES, pared_tarball
from tests.lab.test_module import made_of

pytestmark = [pytest.mark.build, pytest.mark.timeout(3600)]

SERIES = Path(__file__).parents[2] / "fixtures/series"
MATERIALISE = """
import sys
from orchestrator.scenario import kernel_forms
from orchestrator.base.cache import Cache
from orchestrator.kernels import materialise_kernel
from orchestrator.base.progress import Progress

kind, text, tag = sys.argv[1:]
materialise_kernel(getattr(kernel_forms, kind).model_validate_json(text), Cache(), Progress(), tag)
"""


ROOT = """
import sys
from pathlib import Path
from orchestrator.kernels.debian.bootstrap import debian_tar

recipe = {"suites": ["trixie"], "packages": ["busybox"], "exclude": []}
hooks = ['echo $$ > "$1"/../hook; mv "$1"/../hook "$1"/../inside; sleep 600']
debian_tar(Path(sys.argv[1]) / "root.tar", recipe, doing="a root to be killed", hooks=hooks)
"""


@dataclass(frozen=True)
class Sources:
    """A kernel's source: Debian's, or a tarball that is pared down."""

    cache: Cache
    pared: Path | None = None

    def kernel(self, *series: str, config: tuple[str, ...] = ()) -> TreeKernel | SourceKernel:
        if self.pared is not None:
            patches = tuple(str(PARED_SERIES / name) for name in series)
            return TreeKernel(tree=self.pared, series=patches, config=config)
        return SourceKernel(
            source="linux-source-7.3", suite="trixie-backports",
            series=tuple(str(SERIES / name) for name in series), config=config,
        )  # fmt: skip

    def built(self, *series: str, tag: str = "cand", config: tuple[str, ...] = ()) -> KernelBundle:
        return materialise_kernel(self.kernel(*series, config=config), self.cache, Progress(), tag)

    def logs(self) -> dict[Path, int]:
        """Return the build logs with their modification times."""
        return {p: p.stat().st_mtime_ns for p in self.cache.folder("build-logs").iterdir()}

    @property
    def at_once(self) -> int:
        """Least number of compilers that run at one time while a series of one file is built. The
        series of a whole kernel has no other file to compile."""
        return min(2, len(os.sched_getaffinity(0))) if self.pared is not None else 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no object be finished while the block runs. A whole kernel takes long enough by
        itself."""
        trees = self.cache.folder("worktrees").glob("*/work") if self.pared is not None else ()
        holds = [work / "hold" for work in trees]
        for hold in holds:
            hold.touch()
        try:
            yield
        finally:
            for hold in holds:
                hold.unlink()


@pytest.fixture(scope="module")
def pared(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A source with a cache of its own, which shares only the build root."""
    folder = tmp_path_factory.mktemp("pared")
    build_root(Cache())
    (folder / "cache").mkdir()
    (folder / "cache/buildroots").symlink_to(Cache().folder("buildroots"))
    return Sources(Cache(folder / "cache"), pared_tarball(folder))


@pytest.fixture(scope="module")
def whole() -> Sources:
    return Sources(Cache())


@pytest.fixture(scope="module", params=["pared", pytest.param("whole", marks=pytest.mark.full)])
def sources(request: pytest.FixtureRequest) -> Sources:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Sources)
    return found


@pytest.fixture(scope="module")
def base(sources: Sources) -> KernelBundle:
    return sources.built(tag="base")


@pytest.mark.full
def test_host_kernel_has_all_that_it_needs_built_in(whole: Sources) -> None:
    base = whole.built(tag="base")
    assert base.release.startswith("7.3.")
    assert "-base-" in base.release
    needed = ["virtio_blk", "ext4", "overlay", "virtio_net", "vfio_pci", "vfio_iommu_type1"]
    assert base.module_closure([*needed, "kvm_amd", "kvm_intel"]) == []
    assert base.config is not None
    config = parse_config(base.config.read_text())
    assert config["ARCH_SUPPORTS_PUD_PFNMAP"] == "y"
    assert [name for name, value in config.items() if value == "m"] == []


def test_kernel_has_the_modules_that_are_asked_for(pared: Sources) -> None:
    found = pared.built(tag="base", config=("CONFIG_PARED=m",))
    assert found.release.startswith("7.3.0-base-")
    assert found.module_closure(["vfio_main", "pared"]) == ["kernel/drivers/pared.ko"]
    assert (found.modules / "kernel/drivers/pared.ko").is_file()
    assert found.config is not None
    config = parse_config(found.config.read_text())
    assert [name for name, value in config.items() if value == "m"] == ["PARED"]
    assert made_of(found)["config"]["asked"] == ["CONFIG_PARED=m"]


def test_series_makes_another_kernel_and_the_base_comes_back(
    base: KernelBundle, sources: Sources
) -> None:
    check_kernel(sources.kernel("placebo"), sources.cache)
    found = sources.built("placebo")
    name, _, content = found.release.rpartition("-cand-")
    assert base.release.rpartition("-base-")[0] == name
    assert len(found.release) == len(base.release)
    assert content != base.release.rpartition("-")[2]
    assert made_of(found)["base_built"] == made_of(base)["built"]
    assert made_of(found)["config"] == made_of(base)["config"]
    assert made_of(found)["compiler"] == made_of(base)["compiler"]
    assert [patch["subject"] for patch in made_of(found)["series"]] == [
        "vfio/type1: Rename a local variable"
    ]
    logs = sources.logs()
    assert sources.built("placebo") == found
    assert sources.logs() == logs


def test_what_was_compiled_before_comes_from_ccache(pared: Sources, tmp_path: Path) -> None:
    """The base is built once more after a series has changed a header."""
    log = tmp_path / "log"

    def hits() -> int:
        code = build_root(pared.cache).run(
            ["ccache", "--print-stats"], work=tmp_path, doing="asking ccache", log=log
        )
        assert code == 0
        counted = dict(line.split("\t") for line in log.read_text().splitlines())
        return int(counted["direct_cache_hit"]) + int(counted["preprocessed_cache_hit"])

    pared.built(tag="base")
    before = hits()
    pared.built("slower-map", tag=secrets.token_hex(2))
    assert hits() - before >= 2  # vfio_main.c and vfio_iommu_type1.c


def test_base_that_comes_out_otherwise_is_the_benchs_failure(pared: Sources) -> None:
    """The series leaves a file among the objects, and the base is then built with it."""
    base = pared.built(tag="base")
    with pytest.raises(BenchError) as caught:
        pared.built("bad/leaves-a-file.patch")
    assert caught.value.reason == "base-not-reproduced"
    assert made_of(base)["built"] in caught.value.message
    assert made_of(pared.built("placebo", tag="more"))["base_built"] == made_of(base)["built"]


def test_compiler_says_why_it_does_not_build(base: KernelBundle, sources: Sources) -> None:
    check_kernel(sources.kernel("bad/does-not-compile.patch"), sources.cache)  # the patch applies
    with pytest.raises(ScenarioError) as caught:
        sources.built("bad/does-not-compile.patch")
    assert caught.value.reason == "build-failed"
    assert "vfio_iommu_type1.c" in caught.value.evidence
    assert "error:" in caught.value.evidence
    log = Path(caught.value.hint.removeprefix("the whole log: "))
    assert "error:" in log.read_text()


def test_series_that_does_not_apply_is_refused_before_anything_is_built(sources: Sources) -> None:
    with pytest.raises(ScenarioError) as caught:
        check_kernel(sources.kernel("bad/does-not-apply.patch"), sources.cache)
    assert caught.value.reason == "series-does-not-apply"
    assert "drivers/vfio/vfio_iommu_type1.c" in str(caught.value)


def test_option_that_does_not_come_out_is_named_before_anything_is_built(sources: Sources) -> None:
    with pytest.raises(ScenarioError) as caught:
        check_kernel(sources.kernel(config=("CONFIG_NO_SUCH_OPTION=y",)), sources.cache)
    assert caught.value.reason == "config"
    assert caught.value.evidence == "CONFIG_NO_SUCH_OPTION: asked y (config), got n"


@pytest.mark.full
def test_kernel_before_the_series_can_be_configured(whole: Sources) -> None:
    check_kernel(SourceKernel(source="linux-source-6.12", suite="trixie"), whole.cache)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_goes_on_when_the_runner_ends(
    base: KernelBundle, sources: Sources, tmp_path: Path, number: signal.Signals
) -> None:
    interrupted, tag = sources.kernel("slower-map"), secrets.token_hex(2)  # never built before
    asked = [type(interrupted).__name__, interrupted.model_dump_json(), tag]
    said = tmp_path / "stderr"
    with sources.held(), said.open("w") as file:
        runner = subprocess.Popen(
            [sys.executable, "-c", MATERIALISE, *asked], stderr=file,
            env={**os.environ, "BAROMETER_CACHE": str(sources.cache.root)},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while (build := build_of(runner.pid, sources.at_once)) is None:
                assert runner.poll() is None, said.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            runner.send_signal(number)
            runner.wait(60)
        finally:
            runner.kill()
            runner.wait()
        deadline = time.monotonic() + 10
        while left := [found for found in processes().values() if found.namespace == build]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    # what the ended run left half done does not reach the next build
    found = materialise_kernel(interrupted, sources.cache, Progress(), tag)
    assert made_of(found)["base_built"] == made_of(base)["built"]
    remove_tree(found.vmlinuz.parent)


@dataclass(frozen=True)
class Process:
    parent: str
    namespace: str
    """PID namespace of the process."""
    name: str


def processes() -> dict[str, Process]:
    """Return all processes of this machine by their PIDs."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,pidns=,comm="], capture_output=True, text=True, check=True
    ).stdout
    split = (line.split(maxsplit=3) for line in listed.splitlines())
    return {pid: Process(*facts) for pid, *facts in split}


def build_of(runner: int, at_once: int) -> str | None:
    """Return the PID namespace in which `runner` has at least `at_once` compilers at work."""
    found = processes()
    namespaces = []
    for process in found.values():
        if process.name not in ("cc1", "sleep"):  # a compiler that is held up sleeps
            continue
        above = process
        while above.parent in found and above.parent != str(runner):
            above = found[above.parent]
        if above.parent == str(runner):
            namespaces.append(process.namespace)
    return namespaces[0] if len(namespaces) >= at_once else None


@pytest.mark.full
def test_killed_root_leaves_no_mounts(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ROOT, str(tmp_path)]) as process:
        while not (found := [*tmp_path.rglob("inside")]):
            assert process.poll() is None
            time.sleep(0.1)
        hook = int(found[0].read_text())
        assert str(tmp_path) in Path(f"/proc/{hook}/mounts").read_text()  # may be left
        subprocess.run(["pkill", "-KILL", "--session", str(os.getsid(hook))], check=True)
        assert process.wait(60)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


ESCAPES = {
    "chroot": "mkdir /build/x && chroot /build/x true",
    "double chroot": "perl -e 'mkdir q(/build/y); chroot(q(/build/y)) or exit 1'",
    "mount": "mount -t tmpfs tmpfs /tmp",
    "user namespace": "unshare --user --map-root-user mount -t tmpfs tmpfs /tmp",
    "device node": "mknod /build/disk b 254 0",
    "devices": "ls /dev | grep -qvx -e fd -e full -e null -e random -e tty -e urandom -e zero",
    # harmless if it works: the value that is there
    "kernel's settings": "cd /proc/sys/kernel && x=$(cat core_pattern) && echo $x > core_pattern",
    "sysrq": ": >> /proc/sysrq-trigger",
    "memory of the kernel": "head -c 1 /proc/kcore",
    "other processes": 'test "$(ls -d /proc/[0-9]* | wc -l)" -gt 4',
    "root of a process": "ls /proc/1/root/root/.cache",
    "network": "perl -MIO::Socket::INET -e 'IO::Socket::INET->new(q(127.0.0.1:PORT)) or exit 1'",
    "abstract socket": "test -s /proc/net/unix",
    "root's files": "touch /usr/bin/gcc",
    "capabilities": "grep -q 'CapEff:.*[1-9a-f]' /proc/self/status",
}


@pytest.mark.parametrize("how", ESCAPES)
def test_nothing_leaves_the_build_root(how: str, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = ESCAPES[how].replace("PORT", str(server.getsockname()[1]))
        code = build_root(Cache()).run(
            ["sh", "-c", f"echo inside; {{ {script}; }}"], work=tmp_path / "work",
            doing="trying to get out", log=tmp_path / "log",
        )  # fmt: skip
    output = (tmp_path / "log").read_text()
    assert "inside" in output
    assert code != 0, output


def test_build_root_has_what_builds_need(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    code = build_root(Cache()).run(
        ["bash", "-ec", "cat <(echo sub) > /build/made; head -c 4 /dev/urandom > /dev/null;"
         " touch /tmp/scratch; test $(nproc) -ge 1; test $$ -le 2; gcc --version > /dev/null"],
        work=tmp_path / "work", doing="looking around", log=tmp_path / "log",
    )  # fmt: skip
    assert code == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "work/made").read_text() == "sub\n"
    assert not Path("/tmp/scratch").exists()
