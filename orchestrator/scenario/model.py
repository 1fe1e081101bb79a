"""A scenario: all its tables together, and the rules between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.base.spelling import nearest_name
from orchestrator.formats.abi import LEAVES, PAGE
from orchestrator.formats.units import MIB, format_size
from orchestrator.scenario.fields import (
    LONGEST_CMDLINE,
    Bound,
    Expectation,
    ScenarioModel,
)
from orchestrator.scenario.machines import Device, EmulatedDevice, Guest, HostSpec, NestedHost
from orchestrator.scenario.map_workload import Map
from orchestrator.scenario.metrics import METRIC_WORDS
from orchestrator.scenario.trials import Arms, History, Judgement, Trace, Trials
from orchestrator.scenario.vocabulary import (
    ARMS,
    AT_POINTS,
    BACKING_PAGE,
    METRICS,
    Alignment,
    Metric,
    Point,
    State,
    current_name,
    is_headline,
    word_name,
)


def _describe_metrics(schema: dict[str, Any]) -> None:
    """Add every metric to the JSON schema of `expect`, so that an editor can offer and explain
    it."""
    schema["properties"] = {
        words.name: {"description": f"{words.title}. {words.meaning}"}
        | schema["additionalProperties"]
        for words in METRIC_WORDS
    }


class Scenario(ScenarioModel):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    workload: Literal["guest-boot", "map"] = "guest-boot"
    """guest-boot: boot a guest that owns the device. map: map the BAR without a guest."""
    host: HostSpec = NestedHost()
    device: Device = EmulatedDevice()
    guest: Guest | None = None
    """Guest of the workload guest-boot, which needs this table."""
    map: Map = Map()
    """Settings of the workload map."""
    arms: Arms
    trials: Trials = Trials()
    trace: Trace = Trace()
    judgement: Judgement = Judgement()
    history: History = History()
    expect: Annotated[dict[Metric, Expectation], Field(json_schema_extra=_describe_metrics)] = (
        Field(default_factory=dict)
    )
    """Results that the metrics must have for exit code 0: improved, equivalent, not-regressed,
    regressed, or a bound: of the ratio candidate / baseline ("<= 1.02", "<= 2x"), or of the
    candidate's own number ("<= 1ms"; "<= 50 kinsn" with accel exact; of a count "<= 32")."""

    @property
    def nested(self) -> NestedHost:
        """The nested host, for a scenario without a metal host."""
        assert isinstance(self.host, NestedHost)
        return self.host

    def points(self) -> tuple[Point, ...]:
        """Return every point of the map workload in the order of measurement, the best alignment
        first. A guest boot has one point, for its counts: the full BAR at its best alignment,
        cold."""
        maps = self.map if self.workload == "map" else Map(state=("cold",))
        return tuple(
            self._make_point(size, alignment, state)
            for alignment in sorted(maps.alignment, key=lambda name: -LEAVES[name])
            for size in maps.sizes
            if size != self.device.bar or "full" not in maps.sizes
            for state in sorted(maps.state)
        )

    def _make_point(
        self, map_size: int | Literal["full"], alignment: Alignment, state: State
    ) -> Point:
        size = self.device.bar if map_size == "full" else map_size
        spelled = "full" if map_size == "full" else format_size(map_size)
        headline = self.workload == "guest-boot" or is_headline(
            f"{spelled}/{alignment}/{state}", whole=size == self.device.bar
        )
        return Point(size, spelled, alignment, state, headline)

    def metrics(self) -> tuple[Metric, ...]:
        """Return the names of all metrics that a run of this scenario measures."""
        passes = self.trace.passes
        at_points = [m for m in AT_POINTS if METRICS[m] == "count" and "counts" in passes]
        if self.workload == "map":
            at_points += [m for m in AT_POINTS if METRICS[m] == "cost" and "plain" in passes]
        names = [p.metric(m) for m in at_points for p in self.points()]
        if self.workload == "guest-boot":
            names += [m for m in ("guest_boot_cost", "guest_ssh_cost") if "plain" in passes]
            traced = [m for m in METRICS if m.startswith(("bar_", "iommu_"))]
            by_iommufd = self.guest is not None and self.guest.backend == "iommufd"
            if not self.device.mmap or by_iommufd:  # no maps to time: there are 0
                traced = [m for m in traced if m.endswith("_per_boot")]
            names += [m for m in traced if "timing" in passes]
        if self.host.measures_boot:
            names.append("host_boot_seconds")
        return tuple(names)

    @field_validator("expect", mode="before")
    @classmethod
    def _rename_metrics(cls, expect: object) -> object:
        """Give metrics with former names, as scenario files of earlier versions have, their
        present ones."""
        if not isinstance(expect, Mapping):
            return expect
        for name in expect:
            if (now := current_name(name)) != name and now in expect:
                raise ValueError(f'"{name}" is the former name of "{now}": take one of them out')
        return {current_name(name): value for name, value in expect.items()}

    @model_validator(mode="after")
    def _check_workload(self) -> Scenario:
        if self.workload == "guest-boot":
            if self.guest is None:
                raise ValueError('guest: workload = "guest-boot" needs a [guest] with a kernel')
            if "profile" in self.trace.passes:
                raise ValueError('trace.passes: profile is a pass of workload = "map"')
        elif "profile" in self.trace.passes and not self.host.exact:
            raise ValueError('trace.passes: profile needs host.accel = "exact"')
        elif "timing" in self.trace.passes and self.map.backend == "iommufd":
            raise ValueError(
                "trace.passes: timing traces functions of vfio_iommu_type1, which map.backend ="
                ' "iommufd" does not use; leave it out'
            )
        if self.workload == "guest-boot":
            if self.map != Map():
                raise ValueError('map: applies to workload = "map" only')
            if self.host.exact and not self.host.fresh_boots:
                raise ValueError(
                    'host.fresh_boots: false, and workload = "guest-boot" with host.accel ='
                    ' "exact": a second guest boot on one exact host all but stands still'
                )
            return self
        self._check_maps()
        return self

    def _check_maps(self) -> None:
        if self.device.count != 1:
            raise ValueError(
                f'device.count: {self.device.count}, and workload = "map" maps the BAR of one'
                " device"
            )
        if not self.device.mmap:
            raise ValueError(
                'device.mmap: false applies to workload = "guest-boot" only: workload = "map" does'
                " nothing but map the BAR"
            )
        if not {"plain", "counts"} & {*self.trace.passes}:
            raise ValueError("trace.passes: needs plain or counts: else nothing is measured")
        self.host.check_map(self.device.bar)
        for size in self.map.sizes:
            if size == "full":
                continue
            if size % PAGE:
                raise ValueError(f"map.sizes: {format_size(size)} is not a multiple of 4KiB")
            if size > self.device.bar:
                raise ValueError(
                    f"map.sizes: {format_size(size)} is more than the BAR,"
                    f" {format_size(self.device.bar)}"
                )

    @model_validator(mode="after")
    def _check_command_lines(self) -> Scenario:
        """Raise ValueError if host.cmdline also sets what an arm sets, or if a command line is too
        long."""
        common = {word_name(word): word for word in self.host.cmdline.split()}
        for arm in ARMS:
            words = self.arms[arm].words
            for word in words:
                if (other := common.get(word_name(word))) is not None:
                    raise ValueError(
                        f'arms.{arm}: "{word}", and host.cmdline has "{other}": take one out'
                    )
            length = len(" ".join([*words, self.host.cmdline]))
            if length > LONGEST_CMDLINE:
                raise ValueError(
                    f"arms.{arm}: with host.cmdline its kernel's command line has {length}"
                    f" characters more than barometer's own; there is room for {LONGEST_CMDLINE}"
                )
        return self

    @model_validator(mode="after")
    def _check_device_kind(self) -> Scenario:
        if self.device.host_kind != self.host.kind:
            raise ValueError(
                'device.kind: "hostdev" and host.kind = "metal" need one another; here they are'
                f' "{self.device.kind}" and "{self.host.kind}"'
            )
        return self

    @model_validator(mode="after")
    def _check_bars(self) -> Scenario:
        self.host.check_device(self.device, self.guest)
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Scenario:
        if self.workload != "guest-boot" or self.guest is None:
            return self
        if self.guest.memory == self.device.bar:
            raise ValueError(
                f"guest.memory and device.bar are both {format_size(self.device.bar)}: the maps of"
                " the guest's memory could not be told from those of the BAR"
            )
        if self.guest.memory < 128 * MIB:
            raise ValueError(
                f"guest.memory is {format_size(self.guest.memory)}; it needs 128MiB or more"
            )
        self.host.check_guest(self.guest)
        self._check_memory(self.guest)
        return self

    def _check_memory(self, guest: Guest) -> None:
        """Raise ValueError unless the guest's memory suits its boot and its backing."""
        memory, page = format_size(guest.memory), BACKING_PAGE[guest.backing]
        if guest.boot == "disk" and guest.memory < 512 * MIB:
            raise ValueError(f'guest.memory is {memory}; guest.boot = "disk" needs 512MiB or more')
        if guest.memory % page:
            raise ValueError(
                f'guest.memory is {memory}; guest.backing = "{guest.backing}" needs a multiple of'
                f" {format_size(page)}"
            )
        self.host.check_backing(guest)

    @model_validator(mode="after")
    def _check_expected(self) -> Scenario:
        names = self.metrics()
        headline = {f"{m}@{p.name}": m for p in self.points() if p.headline for m in AT_POINTS}
        for name, expectation in self.expect.items():
            if name in names:
                if isinstance(expectation, Bound):
                    self._check_bound(name, expectation)
                continue
            known = name in METRICS or name.partition("@")[0] in AT_POINTS
            why = "is not measured by this workload and its passes" if known else "is not a metric"
            if headline.get(name) in names:
                near = f'; its name is "{headline[name]}"'
            else:
                near = nearest_name(name, names, names)
            raise ValueError(f'expect.{name}: "{name}" {why}{near}')
        return self

    def _check_bound(self, name: Metric, bound: Bound) -> None:
        """Raise ValueError if the metric is not in the unit of its bound."""
        kind = METRICS[name.partition("@")[0]]
        bounded = bound.bounded(kind)
        unit = kind if kind != "cost" else "Ginsn" if self.host.exact else "s"
        if bounded not in ("ratio", unit):
            example = {
                "count": 'a number, such as "<= 32"',
                "s": 'seconds, such as "<= 1ms"',
                "Ginsn": 'instructions with host.accel = "exact", such as "<= 50 kinsn"',
            }[unit]
            raise ValueError(f'expect.{name}: "{bound}": the metric is {example}')
