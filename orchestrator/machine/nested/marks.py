"""Lines on a nested host's console by which the host says how far it has come. Each has the boot's
token in it, so no other line can be mistaken for it. Pure."""

from __future__ import annotations

import re


def sshd_mark(token: str) -> re.Pattern[str]:
    """Return the pattern of the line that the host's init prints once sshd listens. The boot's
    token is in it, so no other line can be mistaken for it. The kernel may begin its next message
    before the end of the line."""
    return re.compile(rf"(?m)^barometer: sshd is up {token}(?:$|\[ *\d)")


def start_failure(token: str) -> re.Pattern[str]:
    """Return the pattern of the line in which the host's first program says why it cannot go on;
    it is a printk message."""
    return re.compile(rf"(?m)^(?:\[ *\d+\.\d+\](?:\[ *\w+\])? )?barometer: start: {token} (.*)$")


def ready_mark(token: str) -> re.Pattern[str]:
    """Return the pattern of the line that a host prints before it waits for its keys, with the
    boot id."""
    return re.compile(rf"(?m)^barometer: may be saved {token} ([0-9a-f-]{{36}})(?:$|\[ *\d)")
