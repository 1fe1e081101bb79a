"""Made-up plans, manifests and facts. They have every key that a writer always gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.base.hashing import sha256_file
from orchestrator.evidence.facts import GuestFacts, HostFacts
from orchestrator.evidence.layout import MANIFEST, TrialDir
from orchestrator.evidence.manifest import Manifest, TrialFacts
from orchestrator.evidence.plan import Plan
from orchestrator.formats.units import GIB

KERNEL = {"release": "7.3.4", "source": "dir:new", "digest": "d2"}
CPU = {"vendor_id": "AuthenticAMD", "model name": "QEMU TCG", "microcode": "0x1",
       "address sizes": "46 bits physical", "pdpe1gb": "True"}  # fmt: skip
DEVICE: dict[str, Any] = {
    "address": "0000:01:00.0", "vendor": "0x1af4", "device": "0x1110", "group_type": "DMA-FQ",
    "resource": ["0x0000380000000000 0x00003807ffffffff 0x000000000014220c"],
}  # fmt: skip
HOST: dict[str, Any] = {
    "release": "7.3.4", "version": "#1 SMP", "settings": {}, "cpu": CPU, "cpus": 1,
    "iommus": ["dmar0"], "device": DEVICE,
}  # fmt: skip
GUEST = {"release": "6.12", "cmdline": "console=ttyS0", "uptime_at_boot_mark": "14.03"}
FACTS: dict[str, Any] = {
    "arm": "baseline", "pair": 1, "number": 1, "barometer": "0.1.0", "workload": "map",
    "accel": "tcg", "kernel": KERNEL, "guest_kernel": None, "bar": GIB,
    "device_kind": "ivshmem", "passes": ["plain"], "runner_versions": {},
}  # fmt: skip
"""Facts with which a trial begins."""
WHOLE = FACTS | {
    "schema": 1, "trial": "0001-baseline", "started": "2026-11-22T22:48:20+00:00", "stages": [],
    "guests": [], "outcome": {"kind": "collected"},
}  # fmt: skip
NO_SETTINGS: dict[str, Any] = {
    "cmdline": {"asked": "", "found": ""}, "parameters": {}, "sysfs": {}, "unreadable": [],
}  # fmt: skip
PLAN: dict[str, Any] = {
    "schema": 1, "barometer": "0.1.0", "scenario": "made-up", "accel": "kvm",
    "accel_reason": "works",
    "kernels": {
        "baseline": {"release": "6.12.107+deb13", "source": "deb:old", "digest": "d1"},
        "candidate": {"release": "7.3.4+deb13", "source": "deb:new", "digest": "d2"},
    },
    "guest_kernel": {"release": "6.12.107", "source": "deb:guest", "digest": "d3"},
    "trials": [],
}  # fmt: skip


def plan_of(**changes: Any) -> Plan:
    return Plan.model_validate_json(json.dumps(PLAN | changes))


def facts_of(**changes: Any) -> TrialFacts:
    return TrialFacts.model_validate_json(json.dumps(FACTS | changes))


def manifest_of(**changes: Any) -> Manifest:
    return Manifest.model_validate_json(json.dumps(WHOLE | changes))


def host_of(**changes: Any) -> HostFacts:
    return HostFacts.model_validate_json(json.dumps(HOST | changes))


def guest_of(**changes: Any) -> GuestFacts:
    return GuestFacts.model_validate_json(json.dumps(GUEST | changes))


def trial_of(folder: Path, **changes: Any) -> TrialDir:
    """Return a trial that has all files of a folder."""
    files = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    return TrialDir(folder, manifest_of(files=files, **changes), "")
