"""Words and defaults that the command line offers. They are apart from the scenario, whose models
take longer to import than the help of the command line takes in all."""

from __future__ import annotations

from typing import Literal

Workload = Literal["map", "guest-boot"]
AccelChoice = Literal["auto", "kvm", "tcg", "exact"]
Hold = Literal["failed", "always"]
"""Trials whose hosts are held for a person."""
GUEST_KERNEL = "deb:linux-image-cloud-amd64@trixie"
"""Kernel that boots in a guest unless another is requested."""
QUIET_SECONDS = 20.0
"""Seconds without a map or a line on a serial port after which a profiled boot is over."""
