"""What a repository that is not ours could make git do: run a program that its configuration
names, fetch something, or belong to somebody else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from orchestrator.base.errors import ScenarioError
from orchestrator.base.process import run
from orchestrator.base.reasons import Reason

# Keys of git-config(1) whose value git runs, alone or through a shell, or is a folder of programs
_PROGRAM = re.compile(
    r"core\.(alternaterefscommand|askpass|editor|fsmonitor|gitproxy|hookspath|pager|sshcommand)"
    r"|credential\.(.*\.)?helper|diff\.external|diff\..*\.(command|textconv)"
    r"|filter\..*\.(clean|smudge|process)|merge\..*\.driver|gpg\.(.*\.)?program"
    r"|gpg\.ssh\.defaultkeycommand|(difftool|mergetool|man|browser|guitool)\..*\.(cmd|path)"
    r"|remote\..*\.(receivepack|uploadpack|vcs|proxy)|uploadpack\.packobjectshook|pager\..*"
    r"|(sequence|web|help)\.(editor|browser)|imap\.tunnel|init\.templatedir|hook\..*\.command"
    r"|interactive\.difffilter|instaweb\.(browser|httpd|modulepath)|submodule\..*\.update"
    r"|sendemail\..*(cmd|smtpserver)|trailer\..*\.(cmd|command)|tar\..*\.command|alias\..*"
    r"|http\.(.*\.)?proxy",
    re.IGNORECASE | re.DOTALL,
)


def disarm_programs(keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the settings that take a repository's programs out of use. `keys`: the keys of its
    configuration. A filter without a program leaves content as it is, unless it is required."""
    for key in dict.fromkeys(keys):
        if _PROGRAM.fullmatch(key):
            yield key, ""
        elif key.startswith("filter.") and key.endswith(".required"):
            yield key, "false"


def check_owner(*paths: Path) -> None:
    """Raise ScenarioError if one of the paths of a repository belongs to somebody whom git would
    not trust: only this user (for root also the one who called sudo) and what `safe.directory` of
    the user's or the system's configuration names are trusted. git itself does not ask that if it
    is told where the repository is (ensure_valid_ownership() in setup.c)."""
    trusted = {os.geteuid()}
    if os.geteuid() == 0 and (called_by := os.environ.get("SUDO_UID", "")).isdecimal():
        trusted.add(int(called_by))
    for path in paths:
        if path.lstat().st_uid in trusted or _is_named_safe(paths):
            continue
        raise ScenarioError(
            f"{path} belongs to the user {path.lstat().st_uid}, who could make git run programs",
            hint=f"git config --global --add safe.directory {_shown(paths)}",
            reason=Reason.OTHER_OWNER,
        )


def _shown(paths: Iterable[Path]) -> str:
    """Return the folder that git names in `safe.directory`: the work tree, or a bare
    repository."""
    first = next(iter(paths))
    return str(first.parent if first.name == ".git" else first)


def _is_named_safe(paths: tuple[Path, ...]) -> bool:
    """True if the user's or the system's `safe.directory` names a path, its folder, or all. An
    empty value forgets those before it."""
    names = {str(p) for path in paths for p in (path, path.resolve(), path.parent)}
    trusts = False
    for scope in ("--system", "--global"):
        listed = run(
            ["git", "config", scope, "--null", "--type=path", "--get-all", "safe.directory"],
            doing="asking git whom you trust", accept=(0, 1, 128),
            env=dict.fromkeys(("GIT_DIR", "GIT_WORK_TREE", "GIT_CONFIG_COUNT")),
        ).stdout.split("\0")[:-1]  # fmt: skip
        for value in listed:
            trusts = bool(value) and (trusts or _matches(value, names))
    return trusts


def _matches(value: str, names: Iterable[str]) -> bool:
    if value == "*" or value in names:
        return True
    return value.endswith("/*") and any(name.startswith(value[:-1]) for name in names)
