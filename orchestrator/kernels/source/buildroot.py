"""The build root: a Debian system with a compiler, in which kernels and modules are built.

It is the same on every runner, and what is built in it lies at the same path, so two builds of
the same content are the same bytes. Nothing of the runner is in it: a command runs in namespaces
of its own, without a network, on a read-only root, and ends with barometer.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.hashing import digest_of
from orchestrator.base.installed import packaged
from orchestrator.base.process import run, run_logged, tail
from orchestrator.base.reasons import Reason
from orchestrator.kernels.debian.apt import source_lines
from orchestrator.kernels.debian.bootstrap import debian_tar, inside

KERNEL_FILES = packaged("guests") / "kernel"
WORK = "/build"
"""Mount point of the work folder in the build root."""
_MOUNT_POINTS = ("build", "ccache", "dev", "proc", "tmp")
_ENVIRONMENT = {
    "PATH": "/usr/lib/ccache:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",  # a tmpfs in the build root
    "LC_ALL": "C.UTF-8",
    "CCACHE_DIR": "/ccache",
    # the work tree is always at one path; CCACHE_BASEDIR would change __FILE__, and so the code
    "CCACHE_NOHASHDIR": "1",
    "CCACHE_MAXSIZE": "2G",
}
_MOUNTS = r"""
set -e
PATH=$PATH:/usr/sbin:/sbin
root=$1 layers=$2 work=$3 ccache=$4; shift 4
if [ -n "$layers" ]; then mount -t overlay overlay -o "lowerdir=$layers:$root" "$root"
else mount --bind "$root" "$root"; mount -o remount,bind,ro "$root"; fi
cd "$root"
mount --bind "$work" build
mount --bind "$ccache" ccache
mount -t tmpfs -o nosuid,nodev tmpfs tmp
mount -t tmpfs -o nosuid,mode=755,size=1m tmpfs dev
for node in null zero full random urandom tty; do
    : > "dev/$node"; mount --bind "/dev/$node" "dev/$node"
done
ln -s /proc/self/fd dev/fd
if ! mount -t proc -o nosuid,nodev,noexec,subset=pid proc proc 2>/dev/null; then
    mount -t proc -o nosuid,nodev,noexec proc proc
    for part in proc/sys proc/sysrq-trigger proc/irq proc/bus proc/fs; do
        [ ! -e "$part" ] || { mount --bind "$part" "$part"; mount -o remount,bind,ro "$part"; }
    done
fi
pivot_root . .
umount -l .
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all /usr/bin/env -i "$@"
"""
"""Enters the build root for good. What is compiled is a stranger's: `pivot_root` takes the files
of the runner away, where root in a `chroot` could find its way back; there is no network, and no
device but the harmless ones; /proc has nothing but the build's own processes (before Linux 5.8,
what else it has is read-only); and root in there has no capability, and gets none."""


@dataclass(frozen=True)
class BuildRoot:
    path: Path
    """Root folder of the system, in the cache."""
    cache: Path

    @cached_property
    def packages(self) -> dict[str, str]:
        lines = (self.path.parent / "packages.txt").read_text().splitlines()
        return dict(line.split("\t") for line in lines)

    @cached_property
    def compiler(self) -> str:
        """First line of `gcc --version`: `gcc (Debian 14.2.0-19) 14.2.0`."""
        return (self.path.parent / "compiler.txt").read_text().strip()

    @cached_property
    def digest(self) -> str:
        """Digest of the packages and their versions."""
        return digest_of(self.packages)

    def run(
        self,
        argv: Sequence[str],
        *,
        work: Path,
        doing: str,
        log: Path,
        layers: Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] = lambda _line: None,
        timeout: float = 7200,
    ) -> int:
        """Run a program with `work` mounted at WORK and return its exit code.

        The content of the folders `layers` lies over the root's, read-only. Output goes to `log`,
        and line by line to `on_line`. Raises BenchError if the program cannot be started or takes
        too long; ScenarioError if the cache's path cannot be an option of the overlay mount."""
        if layers and (wrong := re.search(r"[:,\\]", str(self.cache))):
            raise ScenarioError(
                f"BAROMETER_CACHE, {self.cache}, has a {wrong[0]!r} in its path, which mount(8)"
                " takes for an end: modules cannot be built there",
                hint="put the cache into a folder of another name", reason=Reason.CACHE_PATH,
            )  # fmt: skip
        code = run_logged(
            self._command(argv, work, layers, env or {}), doing=doing, log=log, on_line=on_line,
            timeout=timeout,
        )  # fmt: skip
        text = log.read_text(errors="replace")
        if re.match(r"(sh: \d+: )?(unshare|u?mount|pivot_root|setpriv): ", text):
            raise BenchError(
                f"{doing}: the build root cannot be entered",
                evidence=tail(text),
                hint="building needs namespaces: root, or a kernel that gives them to its users"
                " (sysctl kernel.unprivileged_userns_clone)",
                reason=Reason.BUILD_ROOT,
            )
        return code

    def _command(
        self, argv: Sequence[str], work: Path, layers: Sequence[Path], env: Mapping[str, str]
    ) -> list[str | os.PathLike[str]]:
        variables = (f"{name}={value}" for name, value in {**_ENVIRONMENT, **env}.items())
        # a cache for each root: ccache identifies a compiler by its size and time, and does not
        # notice another assembler
        ccache = self.cache / "ccache" / self.digest
        ccache.mkdir(parents=True, exist_ok=True)
        # the program and all that it starts end with barometer, however that ends
        return [
            "setpriv", "--pdeathsig", "KILL",
            *(inside() or ["unshare"]), "--mount", "--pid", "--net", "--ipc", "--uts", "--fork",
            "--kill-child", "--propagation", "private", "sh", "-c", _MOUNTS, "sh",
            self.path, ":".join(map(str, layers)), work, ccache,
            *variables, *argv,
        ]  # fmt: skip


def build_root(cache: Cache) -> BuildRoot:
    """Return the build root, built by the recipe in guests/kernel if it is not cached. Raises
    BenchError if it cannot be built."""
    recipe = tomllib.loads((KERNEL_FILES / "recipe.toml").read_text())
    key = {"kind": "build-root", "schema": 1, **recipe,
           "mirror": source_lines(tuple(recipe["suites"]))}  # fmt: skip

    def build(folder: Path) -> None:
        tar = folder / "root.tar"
        packages = debian_tar(tar, recipe, doing="building the build root")
        (folder / "packages.txt").write_text(packages)
        script = (
            'set -e; mkdir "$1"; cd "$1";'
            'tar --extract --numeric-owner --exclude "./dev/*" --file "$2";'
            f"mkdir -p {' '.join(_MOUNT_POINTS)}"
        )
        run([*inside(), "sh", "-c", script, "sh", folder / "root", tar],
            doing="unpacking the build root", timeout=900)  # fmt: skip
        tar.unlink()
        root = BuildRoot(folder / "root", cache.root)
        log = folder / "compiler.log"
        code = root.run(["gcc", "--version"], work=folder, doing="asking for the compiler",
                        log=log)  # fmt: skip
        if code:
            raise BenchError("the build root has no gcc", evidence=tail(log.read_text()),
                             reason=Reason.BUILD_ROOT)  # fmt: skip
        (folder / "compiler.txt").write_text(log.read_text().splitlines()[0] + "\n")
        log.unlink()

    return BuildRoot(cache.entry("buildroots", key, build) / "root", cache.root)
