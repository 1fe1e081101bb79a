"""A small Debian system from packages, by mmdebstrap: as root, or in a user namespace."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.command import run
from orchestrator.errors import BenchError
from orchestrator.kernels.apt import mirror_blamed, own_settings, source_lines


def debian_tar(
    tar: Path, recipe: Mapping[str, Any], *, doing: str, hooks: Sequence[str] = ()
) -> str:
    """Make `tar` of what the recipe names (`suites`, `packages`, `exclude`); its packages come
    back as `NAME<tab>VERSION` lines. `hooks`: shell commands over the unpacked system, which is
    their "$1" (mmdebstrap(1), --customize-hook). Raises BenchError when it cannot be built."""
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
        # it cleans up after itself when it is told to end, also by the end of this process
        ["setpriv", "--pdeathsig", "TERM", *_own_mounts(),
         "mmdebstrap", "--variant=minbase", "--architectures=amd64", "--format=tar",
         "--include", ",".join(recipe["packages"]),
         *[f"--dpkgopt=path-exclude={pattern}" for pattern in recipe["exclude"]],
         *[f"--aptopt={line}" for line in settings],
         *[f"--customize-hook={hook}" for hook in hooks],
         # without root the hook's user may write nowhere else
         "--customize-hook=chroot \"$1\" dpkg-query -W -f '${Package}\\t${Version}\\n'"
         " > \"$1\"/packages.txt",
         "--customize-hook=rm -rf \"$1\"/var/cache/apt/* \"$1\"/var/lib/apt/lists/*",
         recipe["suites"][0], tar.name, *source_lines(tuple(recipe["suites"]))],
        doing=doing, cwd=tar.parent, timeout=1800, env={"TMPDIR": _scratch(tar.parent)},
    )  # fmt: skip


def inside() -> list[str]:
    """What a command that makes files of other owners begins with: nothing for root, else a user
    namespace (subuid(5) ranges), which is how mmdebstrap makes a tar, too."""
    return [] if os.geteuid() == 0 else ["unshare", "--map-auto", "--map-root-user"]


def _own_mounts() -> list[str]:
    """What mmdebstrap begins with as root: a mount namespace, with which its mounts are gone when
    it is killed. They would stay below the cache else: /proc, /sys and device nodes, in a folder
    that is to be removed."""
    # a container's root may not; mmdebstrap mounts nothing there
    asked = ["sh", "-c", "unshare --mount true 2>/dev/null && echo may || :"]
    may = os.geteuid() == 0 and run(asked, doing="asking for a mount namespace").stdout
    return ["unshare", "--mount"] if may else []


def _scratch(folder: Path) -> str:
    """Where mmdebstrap works: beside the image as root, so that nothing stays in /tmp when both it
    and barometer are killed; its namespace's user could not enter a folder of ours."""
    return str(folder) if os.geteuid() == 0 else tempfile.gettempdir()


def may_map_users() -> None:
    """Without root what is built is built in a user namespace. Raises BenchError when there is no
    range of users for that."""
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
                reason="no-subuid",
            )
