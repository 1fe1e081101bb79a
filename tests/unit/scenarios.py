"""Scenarios for tests, as TOML text."""

from __future__ import annotations

from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.model import Scenario

MINIMAL = """
name = "small"
[guest]
kernel = { dir = "guest" }
[arms.baseline]
kernel = { dir = "old" }
[arms.candidate]
kernel = { dir = "new" }
"""
MAPS = """
name = "maps"
workload = "map"
[host]
accel = "exact"
[arms.baseline]
kernel = { dir = "old" }
[arms.candidate]
kernel = { dir = "new" }
"""
METAL = """
name = "metal"
workload = "map"
[host]
kind = "metal"
address = "root@gpu1.lab"
[device]
kind = "hostdev"
pick = "largest-bar"
bar = "1GiB"
[arms.baseline]
kernel = { dir = "old" }
[arms.candidate]
kernel = { dir = "new" }
"""


def scenario(*overrides: str, text: str = MINIMAL) -> Scenario:
    return parse_scenario(text, "small.toml", overrides=overrides)[0]


def map_scenario(*overrides: str) -> Scenario:
    return scenario(*overrides, text=MAPS)


def metal_scenario(*overrides: str) -> Scenario:
    return scenario(*overrides, text=METAL)
