"""What tells of this machine, of its user and of a run's own machine."""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path

from orchestrator.report.words.redact import Redaction
from orchestrator.scenario.machines import HostSpec


def find_private(host: HostSpec | None = None) -> Redaction:
    """Return what to take out of files that are published. `host`: the scenario's machine."""
    try:
        users = [getpass.getuser()]
    except (KeyError, OSError):  # a container's user without an entry
        users = []
    node = os.uname().nodename
    hosts = [node, node.partition(".")[0]]
    if host is not None and host.kind == "metal":
        user, _, place = host.address.removeprefix("ssh://").rpartition("@")
        name = re.sub(r":\d+$", "", place)
        users.append(user)
        hosts += (
            [name] if re.fullmatch(r"[0-9a-fA-F.:\[\]]+", name) else [name, *name.split(".")[:1]]
        )
    return Redaction(users=tuple(users), hosts=tuple(hosts), folders=(str(Path.home()),))
