"""What the options of the plugin ask for, and the scenario that every test begins with."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import tomlkit

from orchestrator.base.errors import ScenarioError
from orchestrator.base.hashing import digest_of
from orchestrator.base.reasons import Reason
from orchestrator.harness.marks import Keys, MarkedKeys, collect_keys, merge_tables
from orchestrator.harness.saved import JUDGING_KEYS, apply_to_run, find_runs
from orchestrator.scenario.builder import ArmSettings, Setting, build_ab_file, build_arms
from orchestrator.scenario.choices import GUEST_KERNEL, AccelChoice, Workload
from orchestrator.scenario.kernel_forms import Kernel
from orchestrator.scenario.kernel_spec import parse_kernel
from orchestrator.scenario.model import Scenario

if TYPE_CHECKING:
    import pytest

BASE = "deb:linux-image-cloud-amd64@trixie"
CANDIDATE = "deb:linux-image-cloud-amd64@trixie-backports"
"""The kernels without options: Debian's, before and after the series."""
_BAR = "1GiB"
"""Size of the BAR if no mark names one: the smallest that a leaf of 1 GiB can map."""
BOOTS_GUEST = frozenset({"guest", "guest_kernel", "firmware"})
"""Fixtures that are about a guest."""


@dataclass(frozen=True)
class PluginOptions:
    host: str = "nested"
    base: str | None = None
    candidate: str | None = None
    series: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    out: Path | None = None
    replay: Path | None = None
    keep: bool = False

    @classmethod
    def of(cls, config: pytest.Config) -> PluginOptions:
        def value(name: str) -> Any:
            return config.getoption(f"barometer_{name}")

        def path(name: str) -> Path | None:
            text = value(name)
            return config.invocation_params.dir / text if text else None

        return cls(
            value("host"), value("base"), value("candidate"), tuple(value("series")),
            tuple(value("config")), path("out"), path("replay"), value("keep") == "failed",
        )  # fmt: skip

    def build_base(self, workload: Workload, folder: Path) -> Keys:
        """Return the keys of the scenario that the options describe. Raises ScenarioError."""
        base = parse_kernel(self.base or BASE, "--barometer-base", folder=folder)
        candidate: Kernel | None = None
        if self.candidate or not (self.base or self.series):
            candidate = parse_kernel(
                self.candidate or CANDIDATE, "--barometer-candidate", base=base, folder=folder
            )
        if candidate is None and not self.series:
            candidate = base  # what differs is what the marks set
        arms = build_arms(base, candidate, self.series, self.config, ArmSettings(), folder)
        guest = parse_kernel(GUEST_KERNEL, "guest.kernel", folder=folder)
        setting = Setting(
            self._choose_accel(), "", workload, _BAR, guest if workload == "guest-boot" else None
        )
        keys: Keys = tomlkit.parse(build_ab_file(setting, *arms, ArmSettings(), None)).unwrap()
        keys.pop("expect", None)  # a test says by its claims what it expects
        if self.host in ("nested", *get_args(AccelChoice)):
            return keys
        del keys["device"]["bar"]
        metal = {"kind": "metal", "address": self.host}
        device = {"kind": "hostdev", "pick": "largest-bar"}
        return merge_tables(keys, {"host": metal, "device": device})

    def _choose_accel(self) -> AccelChoice:
        """Return the accelerator: where everything is emulated, instruction counts tell more than
        seconds."""
        for choice in get_args(AccelChoice):
            if choice == self.host:
                return choice  # type: ignore[no-any-return]
        return "auto" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "exact"


def resolve_test(
    node: pytest.Item, fixtures: Collection[str], options: PluginOptions
) -> tuple[Scenario, str, MarkedKeys]:
    """Return the scenario of a test, its text ("" if it is only that of a saved run), and the keys
    of its marks. Raises ScenarioError, which begins with
    the file and the line."""
    marked = collect_keys(node)
    about_guests = "guest" in marked.keys or bool(BOOTS_GUEST & set(fixtures))
    workload: Workload = "guest-boot" if about_guests else "map"
    for named in get_args(Workload):  # a wrong one is found with the scenario
        workload = named if marked.keys.get("workload") == named else workload
    base = options.build_base(workload, Path.cwd())
    try:
        scenario, text = marked.apply(base, node.path.parent)
    except ScenarioError:
        # what fits no scenario of these options may fit that of a saved run
        folders = find_runs(options.replay) if options.replay is not None else ()
        fitting = next(filter(None, (apply_to_run(marked, f) for f in folders)), None)
        if fitting is None:
            raise
        scenario, text = fitting, ""
    return scenario, text, marked


def machine_digest(scenario: Scenario) -> str:
    """Return a digest of everything that a scenario's hosts depend on."""
    document = scenario.model_dump(mode="json")
    kept = {"workload", "host", "device", "guest", "arms"}
    return digest_of({key: value for key, value in document.items() if key in kept})


def run_digest(scenario: Scenario) -> str:
    """Return a digest of everything that a scenario's trials depend on."""
    document = scenario.model_dump(mode="json")
    return digest_of({key: v for key, v in document.items() if key not in JUDGING_KEYS})


def check_names(node: pytest.Item, mark: str, known: Collection[str]) -> tuple[str, ...]:
    """Return the names in a mark that lists some; those of the nearest mark. Raises ScenarioError
    for a name that is not known."""
    found = node.get_closest_marker(mark)
    names = tuple(map(str, found.args)) if found else ()
    for name in names:
        if name not in known:
            place = collect_keys(node).place
            raise ScenarioError(
                f"{place}: {name!r} is not one of {', '.join(known)}", reason=Reason.SCENARIO
            )
    return names
