"""Settings of property tests, and the mark of slow tests.

Property tests have no deadline (a runner may be busy with emulated machines) and keep no database
beside the checkout. In CI they try the same examples every time, so that a new failure is seen at
a desk, not in somebody's unrelated change. HYPOTHESIS_PROFILE is `desk`, which tries fewer
examples, or `full`, which tries more.

Tests in slow.txt are marked `slow`. A new test is not among them until the next measurement."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.unit.costs import Costs

HERE = Path(__file__).parent

settings.register_profile(
    "barometer", deadline=None, database=None, print_blob=True, derandomize="CI" in os.environ
)
settings.register_profile("desk", settings.get_profile("barometer"), max_examples=15)
settings.register_profile("full", settings.get_profile("barometer"), max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "barometer"))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Costs())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {*(HERE / "slow.txt").read_text().split()}
    for item in items:
        if item.nodeid.partition("[")[0] in slow:
            item.add_marker("slow")
