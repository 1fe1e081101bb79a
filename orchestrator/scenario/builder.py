"""Build the text of a scenario file from the options of `barometer ab` or `barometer bisect`.
Pure: nothing is probed, fetched or written."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.base.spelling import nearest_name
from orchestrator.scenario.choices import AccelChoice, Workload
from orchestrator.scenario.kernel_forms import (
    Kernel,
    SourceKernel,
    TreeKernel,
    resolve_kernel_paths,
)
from orchestrator.scenario.kernel_spec import add_series
from orchestrator.scenario.loading import parse_override, parse_scenario
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import (
    METRICS,
    ArmName,
    Metric,
    Pass,
    current_name,
    former_names_note,
)

_log = logging.getLogger("barometer.short")
PAIRS = 12
"""Pairs for times: enough for verdicts on two metrics that change by less than a factor of two.
Exact counts need one pair."""
_HALVES = ("bar_map_cost", "bar_unmap_cost")
_PASSES: dict[Workload, tuple[Pass, ...]] = {
    "map": ("plain", "counts"),
    "guest-boot": ("plain", "timing", "counts"),
}
_LONGEST_NAME = 40


@dataclass(frozen=True)
class Setting:
    """Everything that decides what is measured, and how, except for the kernels."""

    accel: AccelChoice
    why: str = ""
    """Reason for that accelerator, if it was chosen automatically."""
    workload: Workload = "map"
    bar: str = "32GiB"
    guest: Kernel | None = None
    """Kernel of the guest, for guest boots."""


@dataclass(frozen=True)
class ArmSettings:
    """Settings of an arm's kernel."""

    cmdline: str = ""
    parameters: Mapping[str, str | bool] = field(default_factory=dict)
    sysfs: Mapping[str, str | bool] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.cmdline or self.parameters or self.sysfs)


def build_arms(
    base: Kernel,
    candidate: Kernel | None,
    series: Sequence[str],
    config: Sequence[str],
    settings: ArmSettings,
    folder: Path,
) -> tuple[Kernel, Kernel]:
    """Return the two kernels. A series goes on top of the candidate, or of the base if there is no
    candidate; `config` applies to every kernel that is built. Relative paths start at `folder`.

    Raises ScenarioError if nothing differs, or if a kernel cannot have the series or `config`.
    """
    if candidate is None and not series and not settings:
        raise ScenarioError(
            "ab: nothing differs between the arms",
            hint="name what to compare --base with: --candidate KERNEL, --series PATCHES, or a"
            " setting of the candidate such as --candidate-param MODULE.NAME=VALUE",
            reason=Reason.NOTHING_DIFFERS,
        )
    other = candidate or base
    if series:
        other = add_series(other, tuple(series), "--series")
    arms = base, other
    if config and not any(isinstance(k, TreeKernel | SourceKernel) for k in arms):
        raise ScenarioError(
            f"--config applies to kernels that are built whole; {base} and {other} are not",
            hint="give a tree: or source: kernel",
            reason=Reason.KERNEL_SPELLING,
        )
    before, after = (resolve_kernel_paths(add_config(kernel, config), folder) for kernel in arms)
    return before, after


def add_config(kernel: Kernel, config: Sequence[str]) -> Kernel:
    """Add configuration to a kernel that is built whole; return any other as it is."""
    if not config or not isinstance(kernel, TreeKernel | SourceKernel):
        return kernel
    return kernel.model_copy(update={"config": (*kernel.config, *config)})


def parse_settings(cmdline: str, parameters: Sequence[str], sysfs: Sequence[str]) -> ArmSettings:
    """Parse the settings, each NAME=VALUE. Raises ScenarioError for one without its =."""
    parameter = "vfio_iommu_type1.disable_hugepages=true"
    file = "/sys/kernel/mm/transparent_hugepage/enabled=never"
    return ArmSettings(
        cmdline,
        _parse_assignments(parameters, "--candidate-param", parameter),
        _parse_assignments(sysfs, "--candidate-sysfs", file),
    )


def _parse_assignments(texts: Sequence[str], option: str, example: str) -> dict[str, str | bool]:
    values: dict[str, str | bool] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ScenarioError(
                f"{option} {text!r}: expected NAME=VALUE, for example {example}",
                reason=Reason.SCENARIO,
            )
        if name in values:
            raise ScenarioError(f"{option}: {name} is given twice", reason=Reason.SCENARIO)
        words: dict[str, str | bool] = {"true": True, "false": False}
        values[name] = words.get(value, value)
    return values


def build_ab_file(
    setting: Setting, base: Kernel, candidate: Kernel, settings: ArmSettings, pairs: int | None
) -> str:
    """Return the scenario file of an A/B. The kernels' paths are absolute. For maps, a change may
    be in either half, so the verdict is on both, map and unmap."""
    number = pairs or (1 if setting.accel == "exact" else PAIRS)
    document = _start_document(
        f"ab-{_name_difference(base, candidate, settings)}", setting,
        "Made by `barometer ab`. `barometer run` on this file repeats the measurement.",
    )  # fmt: skip
    document["arms"] = _build_arms(base, candidate, settings)
    document["trials"] = _make_table(pairs=number)
    document["trace"] = _make_table(passes=[*_PASSES[setting.workload]])
    if setting.workload == "map":
        document["expect"] = _make_table(**dict.fromkeys(_HALVES, "not-regressed"))
    return _dump(document)


def build_bisect_file(
    setting: Setting, metric: Metric, end: Kernel, overrides: Sequence[str] = ()
) -> str:
    """Return the scenario file from which `build_commit_file` makes those of a bisection's steps.
    It has only the pass that `metric` needs. `end` stands for the kernels of both arms.

    Raises ScenarioError if the metric is not measured, or if an override sets a key that is set
    for each commit.
    """
    for override in overrides:
        table = parse_override(override)[0][0]
        if table in ("arms", "trials", "expect", "name"):
            raise ScenarioError(
                f"--set {override}: {table} is set anew for each commit",
                hint="--trials sets the number of trials, and host.cmdline the command line",
                reason=Reason.SCENARIO,
            )
    document = _start_document(
        "bisect", setting, "Made by `barometer bisect`: the kernels are those of its commits."
    )
    document["arms"] = _build_arms(end, end, ArmSettings())
    known: dict[Metric, None] = {}
    for which in _PASSES[setting.workload]:
        document["trace"] = _make_table(passes=[which])
        scenario, text = parse_scenario(_dump(document), "bisect", overrides=overrides)
        if metric in scenario.metrics():
            return text
        known |= dict.fromkeys(scenario.metrics())
    raise _not_measured_error(metric, [*known], f"by the workload {setting.workload}")


def parse_metric(name: str) -> Metric:
    """Return the metric of `--metric`. Its former name is accepted, and a line tells the present
    one."""
    if note := former_names_note("--metric", [name]):
        _log.warning(note)
    return current_name(name)


def _not_measured_error(metric: Metric, measured: Sequence[Metric], by: str) -> ScenarioError:
    known = metric.partition("@")[0] in METRICS
    why = f"is not measured {by}" if known else "is not a metric"
    return ScenarioError(
        f"--metric {metric}: {why}{nearest_name(metric, measured, measured)}",
        reason=Reason.NO_SUCH_METRIC,
    )


def build_commit_file(template: str, name: str, good: Kernel, other: Kernel, trials: int) -> str:
    """Return the scenario file of a bisection's step, or of its ends: `other` against the good
    kernel, with `trials` trials of each, and without warm-up, control and expectations."""
    document = tomlkit.parse(template)
    document["name"] = name
    document["arms"] = _build_arms(good, other, ArmSettings())
    document["trials"] = _make_table(pairs=trials, warm_up=False, control=False)
    document.pop("expect", None)
    return _dump(document)


def build_template(
    scenario: Scenario, text: str, accel: AccelChoice | None, metric: Metric
) -> str:
    """Return a scenario file as the template of a bisection's measurements: with the accelerator
    `accel` (None for a metal host) and absolute paths.

    Raises ScenarioError if the scenario does not measure `metric`, or if an arm has settings: the
    arms of a bisection are commits only.
    """
    if metric not in scenario.metrics():
        raise _not_measured_error(metric, scenario.metrics(), f"by {scenario.name} and its passes")
    for arm in ("baseline", "candidate"):
        if scenario.arms[arm].is_set:
            raise ScenarioError(
                f"arms.{arm}: has settings besides its kernel, but the arms of a bisection differ"
                " by their commits only",
                hint="host.cmdline applies to every commit",
                reason=Reason.SCENARIO,
            )
    document = tomlkit.parse(text)
    if accel is not None:
        document.setdefault("host", tomlkit.table())["accel"] = accel
    if scenario.guest is not None:
        document["guest"]["kernel"] = _format_kernel(scenario.guest.kernel)
    return _dump(document)


def _start_document(name: str, setting: Setting, origin: str) -> tomlkit.TOMLDocument:
    document = tomlkit.document()
    document.add(tomlkit.comment(origin))
    document["name"] = name
    document["workload"] = setting.workload
    document["host"] = _make_table(accel=setting.accel)
    if setting.why:
        document["host"]["accel"].comment(setting.why)
    document["device"] = _make_table(bar=setting.bar)
    if setting.workload == "map":
        points: dict[str, Any] = {"sizes": ["full"], "state": ["cold", "warm"]}
        if setting.accel == "exact":
            points["repeats"] = 2  # exact repeats all give the same number
        document["map"] = _make_table(**points)
    elif setting.guest is not None:
        document["guest"] = _make_table(kernel=_format_kernel(setting.guest))
    return document


def _dump(document: tomlkit.TOMLDocument) -> str:
    return tomlkit.dumps(document).rstrip("\n") + "\n"


def _build_arms(base: Kernel, candidate: Kernel, settings: ArmSettings) -> Any:
    arms = tomlkit.table(is_super_table=True)
    kernels: dict[ArmName, Kernel] = {"baseline": base, "candidate": candidate}
    for arm, kernel in kernels.items():
        arms[arm] = _make_table(kernel=_format_kernel(kernel))
    if settings.cmdline:
        arms["candidate"]["cmdline"] = settings.cmdline
    for key, values in (("parameters", settings.parameters), ("sysfs", settings.sysfs)):
        if values:
            arms["candidate"][key] = _make_inline_table(values)
    return arms


def _format_kernel(kernel: Kernel) -> Any:
    """Return a kernel as a scenario file spells it, on one line."""
    return _make_inline_table(kernel.model_dump(mode="json", exclude_defaults=True))


def _make_inline_table(values: Mapping[str, Any]) -> Any:
    table = tomlkit.inline_table()
    table.update(values)
    return table


def _make_table(**values: Any) -> Any:
    table = tomlkit.table()
    table.update(values)
    return table


def _name_difference(base: Kernel, candidate: Kernel, settings: ArmSettings) -> str:
    """Return a word for the difference of the arms, which is safe as the name of a folder."""
    if series := getattr(candidate, "series", ()):
        word = Path(series[-1]).name
    elif candidate != base:
        tells = ("ref", "module", "version", "suite", "tree", "dir")
        word = Path(next(str(v) for key in tells if (v := getattr(candidate, key, None)))).name
    else:
        names = [*settings.parameters, *(name.rpartition("/")[2] for name in settings.sysfs)]
        word = names[0] if names else settings.cmdline
    return re.sub(r"[^A-Za-z0-9._]+", "-", word)[:_LONGEST_NAME].strip("-._") or "kernels"
