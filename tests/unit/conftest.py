"""Property tests have no deadline (a runner may be busy with emulated machines) and keep no
database beside the checkout."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("barometer", deadline=None, database=None, print_blob=True)
settings.load_profile("barometer")
