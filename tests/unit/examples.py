"""Set how many examples an expensive or cheap property test tries, as a share of the profile's."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

NUMBER = settings().max_examples


def share(of_the_profiles: float, **more: Any) -> settings:
    return settings(max_examples=max(1, round(of_the_profiles * NUMBER)), **more)
