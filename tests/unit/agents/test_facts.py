from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.agents.loading import agent


def test_processor_is_described() -> None:
    cpu = agent("facts").cpu()
    assert set(cpu) == {"vendor_id", "model name", "microcode", "address sizes", "pdpe1gb"}
    assert cpu["vendor_id"]
    assert cpu["pdpe1gb"] in ("True", "False")


def test_file_that_is_not_there_is_none() -> None:
    facts = agent("facts")
    assert facts.text("/no/such/file") is None
    assert facts.text(facts.SETTINGS["boot_id"])


def test_clock_source_is_a_fact() -> None:
    facts = agent("facts")
    assert Path(facts.SETTINGS["clocksource"]).name == "current_clocksource"


@pytest.mark.parametrize("said", [["tsc-early", "tsc-early", "tsc"], ["hpet"], [None]])
def test_clock_that_is_calibrated_still_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, said: list[str | None]
) -> None:
    facts = agent("facts")
    slept: list[float] = []
    monkeypatch.setattr(facts, "text", lambda path: said[len(slept)])
    monkeypatch.setattr(facts.time, "sleep", slept.append)
    facts.await_clock()
    assert len(slept) == len(said) - 1


def test_clock_that_stays_so_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = agent("facts")
    monkeypatch.setattr(facts, "CLOCK_SECONDS", 0.0)
    monkeypatch.setattr(facts, "text", lambda path: "tsc-early")
    facts.await_clock()


def test_settings_of_this_machine_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    facts = agent("facts")
    facts.main()
    said = json.loads(capsys.readouterr().out)
    assert said["settings"].keys() == facts.SETTINGS.keys()


def found(monkeypatch: pytest.MonkeyPatch, facts: ModuleType, tree: dict[str, str]) -> None:
    """Replace the file system by one that has only `tree`."""
    monkeypatch.setattr(facts.glob, "glob", lambda pattern: fnmatch.filter(tree, pattern))
    monkeypatch.setattr(facts, "text", tree.get)


def test_governors_of_all_processors_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = agent("facts")
    path = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
    names = ("powersave", "performance", "powersave")
    found(monkeypatch, facts, {path.format(n): name for n, name in enumerate(names)})
    assert facts.governor() == "performance powersave"
    found(monkeypatch, facts, {})
    assert facts.governor() is None


def test_parameters_are_those_of_vfio_and_of_iommus(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = agent("facts")
    tree = {
        "/sys/module/vfio_iommu_type1/parameters/disable_hugepages": "N",
        "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode": "N",
        "/sys/module/iommufd/parameters/x": "1",
        "/sys/module/kvm/parameters/nx_huge_pages": "Y",
    }
    found(monkeypatch, facts, tree)
    assert list(facts.parameters().items()) == [
        ("iommufd.x", "1"), ("vfio.enable_unsafe_noiommu_mode", "N"),
        ("vfio_iommu_type1.disable_hugepages", "N"),
    ]  # fmt: skip


def test_vulnerabilities_have_the_kernels_words(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = agent("facts")
    tree = {"/sys/devices/system/cpu/vulnerabilities/meltdown": "Mitigation: PTI"}
    found(monkeypatch, facts, tree)
    assert facts.vulnerabilities() == {"meltdown": "Mitigation: PTI"}
