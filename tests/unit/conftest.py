"""Property tests have no deadline (a runner may be busy with emulated machines) and keep no
database beside the checkout. In CI they try the same examples every time: what they find new is
found at a desk, not in somebody's unrelated change."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile(
    "barometer", deadline=None, database=None, print_blob=True, derandomize="CI" in os.environ
)
settings.load_profile("barometer")
