"""The `map` workload of a scenario."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.formats.units import format_size
from orchestrator.scenario.fields import MapSize, ScenarioModel
from orchestrator.scenario.vocabulary import Alignment, State


class Map(ScenarioModel):
    """The `map` workload: the BAR is mapped and unmapped from the host's user space."""

    sizes: Annotated[tuple[MapSize, ...], Field(min_length=1)] = ("full",)
    """Sizes to map; "full" is the whole BAR. Each size is a mapping of its own."""
    alignment: Annotated[tuple[Alignment, ...], Field(min_length=1)] = ("1GiB",)
    """Alignment of the mapping's virtual address to the BAR's. It limits the largest leaf of the
    page table."""
    state: Annotated[tuple[State, ...], Field(min_length=1)] = ("cold", "warm")
    """cold: the BAR's page tables were zapped before; warm: they are as the last map left them."""
    repeats: Annotated[int, Field(ge=1, le=10000)] = 3
    """Samples of each point in one trial, reduced to their median."""
    backend: Literal["type1", "iommufd"] = "type1"
    """VFIO interface: container and group (type1v2), or iommufd and the device's cdev."""
    thp: Literal["inherit", "disable", "nohugepage", "hugepage"] = "inherit"
    """Transparent huge pages of the process that maps. inherit: as on the host. disable: off by
    prctl. nohugepage, hugepage: off or on by madvise."""

    @model_validator(mode="after")
    def _check_no_repeats(self) -> Map:
        for key in ("sizes", "alignment", "state"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                twice = next(v for v in values if values.count(v) > 1)
                shown = format_size(twice) if isinstance(twice, int) else twice
                raise ValueError(f"{key} names {shown} twice")
        return self
