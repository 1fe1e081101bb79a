"""Build a small Debian system from packages with mmdebstrap, as root or in a user namespace."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.base.errors import BenchError
from orchestrator.base.process import run
from orchestrator.base.reasons import Reason
from orchestrator.kernels.debian.apt import mirror_blamed, own_settings, source_lines


def debian_tar(
    tar: Path, recipe: Mapping[str, Any], *, doing: str, hooks: Sequence[str] = ()
) -> str:
    """Build the system that the recipe describes (`suites`, `packages`, `exclude`) into `tar`, and
    return its packages as `NAME<tab>VERSION` lines. `hooks` are shell commands that run over the
    unpacked system, which is their "$1" (mmdebstrap(1), --customize-hook). Raises BenchError if
    it cannot be built."""
    may_map_users()
    kept = ("Proxy", "Check", "Retries", "Timeout")
    settings = [line for line in own_settings() if any(word in line for word in kept)]
    with mirror_blamed():
        _bootstrap(tar, recipe, settings, hooks, doing)
    return run(["tar", "-xOf", tar, "./packages.txt"], doing="listing its packages").stdout


def _bootstrap(
    tar: Path, recipe: Mapping[str, Any], settings: Sequence[str], hooks: Sequence[str], doing: str
) -> None:
    run(
        # mmdebstrap cleans up on SIGTERM, which the end of this process sends it, too
        ["setpriv", "--pdeathsig", "TERM", *_own_mounts(),
         "mmdebstrap", "--variant=minbase", "--architectures=amd64", "--format=tar",
         "--include", ",".join(recipe["packages"]),
         *[f"--dpkgopt=path-exclude={pattern}" for pattern in recipe["exclude"]],
         *[f"--aptopt={line}" for line in settings],
         *[f"--customize-hook={hook}" for hook in hooks],
         # in the system's root: without root, the hook's user may write nowhere else
         "--customize-hook=chroot \"$1\" dpkg-query -W -f '${Package}\\t${Version}\\n'"
         " > \"$1\"/packages.txt",
         "--customize-hook=rm -rf \"$1\"/var/cache/apt/* \"$1\"/var/lib/apt/lists/*",
         recipe["suites"][0], tar.name, *source_lines(tuple(recipe["suites"]))],
        doing=doing, cwd=tar.parent, timeout=1800, env={"TMPDIR": _scratch(tar.parent)},
    )  # fmt: skip


def inside() -> list[str]:
    """Return the prefix of a command that makes files of other owners: empty for root, else a user
    namespace with the ranges of subuid(5). mmdebstrap makes a tar in the same way."""
    return [] if os.geteuid() == 0 else ["unshare", "--map-auto", "--map-root-user"]


def _own_mounts() -> list[str]:
    """Return the prefix that gives mmdebstrap a mount namespace if it runs as root.

    If mmdebstrap is killed, its mounts end with the namespace. They would stay below the cache
    otherwise: /proc, /sys and device nodes, in a folder that is to be removed."""
    # root in a container may not have one; mmdebstrap mounts nothing there
    attempt = ["sh", "-c", "unshare --mount true 2>/dev/null && echo may || :"]
    may = os.geteuid() == 0 and run(attempt, doing="asking for a mount namespace").stdout
    return ["unshare", "--mount"] if may else []


def _scratch(folder: Path) -> str:
    """Return the folder in which mmdebstrap works.

    For root it is beside the image, so that nothing stays in /tmp if both mmdebstrap and barometer
    are killed. For others it is the system's temporary folder: the users of mmdebstrap's namespace
    could not enter a folder of ours."""
    return str(folder) if os.geteuid() == 0 else tempfile.gettempdir()


def may_map_users() -> None:
    """Raise BenchError if this user has no range of ids in /etc/subuid and /etc/subgid.

    Without root, images are built in a user namespace, which needs such ranges."""
    if os.geteuid() == 0:
        return
    user = pwd.getpwuid(os.geteuid()).pw_name
    for table in ("subuid", "subgid"):
        path = Path("/etc") / table
        lines = path.read_text().splitlines() if path.exists() else []
        if not any(line.split(":")[0] in (user, str(os.geteuid())) for line in lines):
            raise BenchError(
                f"no image can be built as {user}: /etc/{table} has no range for it",
                hint="as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "
                + user,
                reason=Reason.NO_SUBUID,
            )
