"""Use the bench of the lab: faults are provoked in the same real machines."""

from __future__ import annotations

from tests.faults.place import fault, place  # noqa: F401
from tests.lab.conftest import (  # noqa: F401  # fixtures
    kept_host,
    machine,
    means,
    one_trial,
    own_state,
    shared,
    shared_trial,
)
