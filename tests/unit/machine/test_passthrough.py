from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.errors import ArmFailedError, BenchError
from orchestrator.evidence.layout import TrialWriter
from orchestrator.formats.abi import IORESOURCE_UNSET
from orchestrator.formats.units import GIB
from orchestrator.machine.host.host import Host
from orchestrator.machine.host.pci import Survey
from orchestrator.machine.metal.passthrough import (
    Refusal,
    bind_hostdev,
    choose_function,
    find_own_functions,
    find_refusals,
    list_notes,
    survey_devices,
)
from orchestrator.machine.runner.images import GUESTS
from orchestrator.machine.transport.shell import Completed, Shell
from orchestrator.scenario.machines import HostDevice
from tests.unit.hosts import Recorded
from tests.unit.machines import RECORDED, recorded
from tests.unit.manifests import facts_of

FREE, USED = "0000:3a:00.0", "0000:39:00.0"
"""Functions of the GPU server."""


def device(bar: str = "128GiB", **how: str) -> HostDevice:
    return HostDevice.model_validate({"kind": "hostdev", "bar": bar, **how})


def altered(name: str, change: Callable[[dict[str, Any]], None]) -> Survey:
    """Return a machine after a change of its users, or of its functions by address."""
    said = json.loads((RECORDED / f"{name}.json").read_text())
    by_address = {facts["address"]: facts for facts in said["functions"]}
    change({**said, **by_address})
    return Survey.parse(json.dumps(said))


def refused(survey: Survey, address: str) -> dict[str, str]:
    return {refusal.reason: refusal.text for refusal in find_refusals(survey, address)}


def idle(said: dict[str, Any]) -> None:
    """Close all devices; the drivers are then in nobody's use."""
    said["users"][:] = [user for user in said["users"] if user["kind"] != "open"]
    for facts in said["functions"]:
        facts["module_use"] = 0 if facts["module_use"] else facts["module_use"]


# -- choosing -------------------------------------------------------------------------------


def test_device_is_found_by_its_address() -> None:
    assert choose_function(device(address=FREE), recorded("gpu-server")).address == FREE


def test_device_is_found_by_its_id() -> None:
    survey = recorded("virtual-function")
    with pytest.raises(BenchError, match="the machine has 3 devices 15b3:101e"):
        choose_function(device("1MiB", id="15b3:101e"), survey)

    def another(said: dict[str, Any]) -> None:
        said["0000:5e:00.2"]["device"] = "0x101c"

    found = choose_function(device("1MiB", id="15b3:101c"), altered("virtual-function", another))
    assert found.address == "0000:5e:00.2"


def test_several_devices_with_the_id_are_named() -> None:
    with pytest.raises(BenchError, match="the machine has 2 devices 10de:2bb5") as caught:
        choose_function(device(id="10de:2bb5"), recorded("gpu-server"))
    assert caught.value.reason == "device-ambiguous"
    assert caught.value.evidence.splitlines() == [
        "0000:39:00.0 (10de:2bb5, BAR 1 of 128GiB, driver nvidia)",
        "0000:3a:00.0 (10de:2bb5, BAR 1 of 128GiB, no driver)",
    ]
    assert caught.value.hint == 'choose one: device.address = "0000:39:00.0"'


def test_largest_bar_is_that_of_a_device_that_can_be_spared() -> None:
    assert choose_function(device(pick="largest-bar"), recorded("gpu-server")).address == FREE


def test_largest_bar_that_several_have_is_no_choice() -> None:
    with pytest.raises(BenchError, match="2 devices with the largest BAR") as caught:
        choose_function(device(pick="largest-bar"), altered("gpu-server", idle))
    assert caught.value.reason == "device-ambiguous"
    assert USED in caught.value.evidence
    assert FREE in caught.value.evidence


def test_machine_that_can_spare_nothing_says_why() -> None:
    with pytest.raises(BenchError, match="no device that can be given to a guest") as caught:
        choose_function(device("256MiB", pick="largest-bar"), recorded("laptop"))
    assert caught.value.reason == "device-missing"
    assert "0000:02:00.0 (10de:1c8d, BAR 1 of 256MiB, driver nouveau): refused" in (
        caught.value.evidence
    )


def test_device_that_is_not_there_is_answered_with_what_is() -> None:
    with pytest.raises(BenchError, match=r"the machine has no device 0000:aa:00\.0") as caught:
        choose_function(device(address="0000:aa:00.0"), recorded("gpu-server"))
    assert caught.value.reason == "device-missing"
    first, second, *_ = caught.value.evidence.splitlines()
    assert first == "0000:39:00.0 (10de:2bb5, BAR 1 of 128GiB, driver nvidia): refused, in-use"
    assert second == "0000:3a:00.0 (10de:2bb5, BAR 1 of 128GiB, no driver)"


def test_machine_without_devices_says_so() -> None:
    empty = Survey((), {}, (), 0)
    with pytest.raises(BenchError) as caught:
        choose_function(device(id="10de:2bb5"), empty)
    assert caught.value.evidence == "no PCI function has a memory BAR of 1MiB or more"


def test_refused_device_is_not_chosen() -> None:
    with pytest.raises(BenchError, match="cannot be given to a guest") as caught:
        choose_function(device(address=USED), recorded("gpu-server"))
    assert caught.value.reason == "device-refused"
    assert caught.value.evidence.startswith("in-use: /dev/nvidia0 of 0000:39:00.0")


def test_bar_of_another_size_is_not_taken() -> None:
    with pytest.raises(BenchError, match=r"has no BAR of 32GiB, which is device\.bar") as caught:
        choose_function(device("32GiB", address=FREE), recorded("gpu-server"))
    assert caught.value.reason == "device-bar"
    assert "BAR 1: 128GiB at 0x384000000000 (64-bit, prefetchable)" in caught.value.evidence
    assert caught.value.hint == ""


def test_bar_that_could_be_larger_is_pointed_out() -> None:
    def free(said: dict[str, Any]) -> None:
        said["users"].clear()
        said["0000:07:00.0"]["boot_vga"] = 0

    with pytest.raises(BenchError, match="has no BAR of 16GiB") as caught:
        choose_function(device("16GiB", address="0000:07:00.0"), altered("workstation", free))
    assert "BAR 0 of 0000:07:00.0 has 256MiB and can have 16GiB" in caught.value.hint


# -- refusals -------------------------------------------------------------------------------


def test_free_device_is_not_refused() -> None:
    assert find_refusals(recorded("gpu-server"), FREE) == ()
    assert find_refusals(recorded("unassigned"), "0000:02:00.0") == ()
    assert find_refusals(recorded("virtual-function"), "0000:5e:00.2") == ()


@pytest.mark.parametrize(
    ("machine", "address", "reason", "said"),
    [
        ("gpu-server", "0000:38:00.0", "bridge", "0000:38:00.0 (8086:352a, driver pcieport)"),
        ("gpu-server", "0000:17:00.0", "own-network",
         "eno1np0 (/sys/class/net/eno1np0) of 0000:17:00.0 (15b3:101f, BAR 0 of 32MiB, driver"
         " mlx5_core) serves default route, SSH connection, through bond0, bond0.100"),
        ("workstation", "0000:03:00.0", "own-network", "serves default route, SSH connection:"),
        ("gpu-server", "0000:01:00.0", "own-disk",
         "serves /, /boot, /boot/efi, swap, through nvme0n1p1, nvme0n1p2, nvme0n1p3, dm-0, dm-1"),
        ("workstation", "0000:02:00.0", "own-disk", "serves /, ZFS pool tank, through sdb1, sdb2"),
        ("laptop", "0000:02:00.0", "own-disk", "0000:04:00.0 (1179:0115, driver nvme) serves /"),
        ("gpu-server", "0000:04:00.0", "console", "(/sys/class/graphics/fb0)"),
        ("workstation", "0000:07:00.0", "console", "serves console"),
        ("laptop", "0000:00:16.3", "console", "ttyS4 (/sys/class/tty/ttyS4)"),
        ("workstation", "0000:07:00.0", "in-use", "is open in pipewire (812): end that"),
        ("gpu-server", "0000:39:00.0", "in-use", "/dev/nvidia0 of 0000:39:00.0"),
        ("gpu-server", "0000:00:14.0", "in-use", "Virtual Keyboard and Mouse"),
        ("unassigned", "0000:00:1f.6", "in-use", "is up: ip link set eno1 down"),
        ("unassigned", "0000:00:17.0", "in-use", "is part of md127: take that apart first"),
        ("unassigned", "0000:00:0e.0", "in-use",
         "(/sys/block/nvme0n1) of 10000:01:00.0 (144d:a80a, driver nvme) is part of md127"),
        ("virtual-function", "0000:5e:00.0", "in-use",
         "has virtual functions (0000:5e:00.2, 0000:5e:00.3): echo 0 >"
         " /sys/bus/pci/devices/0000:5e:00.0/sriov_numvfs"),
        ("virtual-function", "0000:5e:00.3", "owned",
         "/dev/vfio/5 of 0000:5e:00.3 (15b3:101e, BAR 0 of 1MiB, driver vfio-pci) is open in"
         " qemu-system-x86 (700)"),
        ("virtual-function", "0000:5e:00.4", "group-shared",
         "IOMMU group 3 (/sys/kernel/iommu_groups/3/devices) also has 0000:5e:00.1"),
        ("laptop", "0000:02:00.0", "group-shared",
         "also has 0000:03:00.0 (10ec:525a, driver rtsx_pci), 0000:04:00.0"),
        ("without-iommu", "0000:01:00.0", "no-iommu-group", "/sys/class/iommu is empty"),
        ("without-iommu", "0000:01:00.0", "no-iommu-group", "own kernel, which host.cmdline is"),
        ("unassigned", "0000:01:00.0", "bar-not-placed",
         "(/sys/bus/pci/devices/0000:01:00.0/resource, 32GiB not placed (64-bit, prefetchable))"),
    ],
)  # fmt: skip
def test_device_is_refused(machine: str, address: str, reason: str, said: str) -> None:
    found = find_refusals(recorded(machine), address)
    assert any(r.reason == reason and said in r.text for r in found), found


@pytest.mark.parametrize(
    ("machine", "address", "reasons"),
    [
        ("gpu-server", "0000:39:00.0", {"in-use"}),
        ("gpu-server", "0000:04:00.0", {"console"}),
        ("gpu-server", "0000:02:00.0", set()),
        ("gpu-server", "0000:17:00.0", {"own-network"}),
        ("workstation", "0000:07:00.0", {"console", "in-use"}),
        ("laptop", "0000:02:00.0", {"own-disk", "group-shared"}),
        ("virtual-function", "0000:5e:00.1", {"in-use", "group-shared"}),
        ("unassigned", "0000:01:00.0", {"bar-not-placed"}),
    ],
)
def test_refusals_are_no_more_than_these(machine: str, address: str, reasons: set[str]) -> None:
    assert set(refused(recorded(machine), address)) == reasons


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"answers": False, "command": 0xFFFF, "power_state": "unknown"}, "device-gone",
         "reads all ones"),
        ({"reserved_regions": ["0x00000000000a0000 0x00000000000bffff direct",
                               "0x00000000fee00000 0x00000000feefffff msi"]}, "rmrr",
         "0x00000000000a0000 0x00000000000bffff mapped for 0000:3a:00.0"),
        ({"claims": ["BOOTFB"], "boot_vga": 0}, "bar-claimed", "BOOTFB claims"),
        ({"claims": ["simpledrm", "vfio-pci"], "driver": "vfio-pci"}, "bar-claimed", "simpledrm"),
        ({"driver": "nvidia", "module": "nvidia", "module_use": 2,
          "module_holders": ["nvidia_uvm"]}, "in-use", "persistence mode"),
    ],
)  # fmt: skip
def test_what_the_host_says_of_a_device_refuses_it(
    change: dict[str, Any], reason: str, words: str
) -> None:
    def changed(said: dict[str, Any]) -> None:
        idle(said)
        said[FREE].update(change)

    found = refused(altered("gpu-server", changed), FREE)
    assert list(found) == [reason]
    assert words in found[reason]


@pytest.mark.parametrize(
    "change",
    [
        {"reserved_regions": ["0x00000000000a0000 0x00000000000bffff direct-relaxable"]},
        {"reserved_regions": ["0x00000000fee00000 0x00000000feefffff msi"]},
        {"claims": ["nvidia"], "driver": "nvidia", "module": "nvidia", "module_use": 1,
         "module_holders": ["nvidia_modeset"]},
        # a driver may name its ranges as it likes
        {"claims": ["ICH HD audio"], "driver": "snd_hda_intel", "module": "snd_hda_intel"},
        {"answers": True}, {"answers": None, "power_state": "unknown"},
    ],
)  # fmt: skip
def test_what_is_usual_does_not_refuse_a_device(change: dict[str, Any]) -> None:
    def changed(said: dict[str, Any]) -> None:
        idle(said)
        said[FREE].update(change)

    assert refused(altered("gpu-server", changed), FREE) == {}


def test_intels_option_is_no_hint_for_a_machine_of_amds() -> None:
    def amd(said: dict[str, Any]) -> None:
        for facts in said["functions"]:
            if facts["class"].startswith("0x06"):
                facts["vendor"] = "0x1022"

    texts = [
        refused(survey, "0000:01:00.0")["no-iommu-group"]
        for survey in (recorded("without-iommu"), altered("without-iommu", amd))
    ]
    assert ["intel_iommu" in text for text in texts] == [True, False]


def test_boot_vga_alone_is_the_console() -> None:
    def headless(said: dict[str, Any]) -> None:
        said["users"][:] = [user for user in said["users"] if user["kind"] != "display"]

    assert "boot_vga is 1" in refused(altered("gpu-server", headless), "0000:04:00.0")["console"]


def test_iommu_that_is_not_in_front_of_the_device_is_named() -> None:
    survey = altered("without-iommu", lambda said: said["iommus"].append("dmar0"))
    assert (
        "none of the IOMMUs (dmar0) is in front of it"
        in (refused(survey, "0000:01:00.0")["no-iommu-group"])
    )


def test_driver_on_a_host_bridge_of_the_group_is_in_the_way() -> None:
    def shared(said: dict[str, Any]) -> None:
        idle(said)
        for address in (FREE, "0000:3a:00.1"):
            said[address]["group_devices"].append("0000:37:00.0")
        said["0000:37:00.0"]["class"] = "0x060000"
        for port in ("0000:38:00.0", "0000:38:10.0", USED, FREE, "0000:39:00.1", "0000:3a:00.1"):
            said[port]["parents"].remove("0000:37:00.0")

    def driven(said: dict[str, Any]) -> None:
        shared(said)
        said["0000:37:00.0"]["driver"] = "igen6_edac"

    assert find_refusals(altered("gpu-server", shared), FREE) == ()
    assert (
        "0000:37:00.0 (8086:352a, driver igen6_edac)"
        in (refused(altered("gpu-server", driven), FREE)["group-shared"])
    )


def test_bridge_that_leads_to_others_is_in_the_way() -> None:
    def shared(said: dict[str, Any]) -> None:
        idle(said)
        said[FREE]["group_devices"].append("0000:37:00.0")

    text = refused(altered("gpu-server", shared), FREE)["group-shared"]
    assert "also has 0000:39:00.0" in text
    assert "0000:38:10.0" not in text  # a bridge port, the one that leads to the device itself


def test_bridge_to_the_device_alone_is_not_in_the_way() -> None:
    def shared(said: dict[str, Any]) -> None:
        said[FREE]["group_devices"].append("0000:38:10.0")

    assert find_refusals(altered("gpu-server", shared), FREE) == ()


def test_isa_bridge_beside_the_device_is_in_the_way() -> None:
    def shared(said: dict[str, Any]) -> None:
        said["0000:3a:00.1"]["class"] = "0x060100"

    assert "group-shared" in refused(altered("gpu-server", shared), FREE)


def test_unmounted_disk_with_partitions_is_free() -> None:
    assert find_refusals(recorded("gpu-server"), "0000:02:00.0") == ()


def test_io_bar_without_a_place_is_no_matter() -> None:
    def unplaced(said: dict[str, Any]) -> None:
        said[FREE]["resource"][5] = f"0x0 0x7f {0x100 | IORESOURCE_UNSET:#x}"

    assert find_refusals(altered("gpu-server", unplaced), FREE) == ()


def test_node_of_a_shared_group_is_said_once() -> None:
    def opened(said: dict[str, Any]) -> None:
        idle(said)
        said["users"] += [
            {"function": address, "kind": "open", "name": "/dev/vfio/41", "path": "/dev/vfio/41",
             "up": False, "above": [], "serves": ["qemu-system-x86 (7)"]}
            for address in (FREE, "0000:3a:00.1")
        ]  # fmt: skip

    [only] = find_refusals(altered("gpu-server", opened), FREE)
    assert only == Refusal(
        "owned",
        "/dev/vfio/41 of 0000:3a:00.0 (10de:2bb5, BAR 1 of 128GiB, no driver) is open in"
        " qemu-system-x86 (7): end that guest or program",
    )


# -- notes, own functions -------------------------------------------------------------------


def test_device_that_cannot_be_reset_is_noted() -> None:
    survey = recorded("unassigned")
    [note] = list_notes(survey, survey.functions["0000:02:00.0"])
    assert note.startswith("0000:02:00.0 has no way to be reset")


def test_device_in_order_has_nothing_to_be_noted() -> None:
    survey = recorded("gpu-server")
    assert list_notes(survey, survey.functions[FREE]) == ()


def test_processes_that_could_not_be_asked_are_noted() -> None:
    survey = recorded("gpu-server")
    blind = Survey(survey.iommus, survey.functions, survey.users, unread=12)
    assert list_notes(blind, survey.functions[FREE]) == (
        "12 processes could not be asked what they have open: not root there?",
    )


def test_bar_that_could_be_larger_is_noted() -> None:
    survey = recorded("workstation")
    [note] = list_notes(survey, survey.functions["0000:07:00.0"])
    assert "can have 16GiB (Resizable BAR, /sys/bus/pci/devices/0000:07:00.0/resource0" in note


@pytest.mark.parametrize(
    ("machine", "address", "expected"),
    [
        ("gpu-server", FREE, [FREE, "0000:3a:00.1"]),
        ("virtual-function", "0000:5e:00.4", ["0000:5e:00.4"]),
        ("virtual-function", "0000:5e:00.1", ["0000:5e:00.1"]),
        ("laptop", "0000:02:00.0", ["0000:02:00.0"]),
    ],
)
def test_functions_of_the_same_device(machine: str, address: str, expected: list[str]) -> None:
    survey = recorded(machine)
    found = find_own_functions(survey, survey.functions[address])
    assert [function.address for function in found] == expected


# -- binding --------------------------------------------------------------------------------


def machine(said: str) -> Shell:
    """Make a shell that answers only the agent's source, with a survey."""

    def run(argv: list[str], *, stdin: bytes, doing: str) -> Completed:
        assert argv[:3] == ["python3", "-I", "-c"]
        assert stdin == (GUESTS / "agents/survey.py").read_bytes()
        return Completed(said, "", 0)

    return cast(Shell, SimpleNamespace(run=run))


def answering(name: str) -> Shell:
    return machine((RECORDED / f"{name}.json").read_text())


def host(name: str, log: list[str]) -> Host:
    """Make a host that answers with a survey, and whose changes are recorded in `log`."""
    return cast(Host, SimpleNamespace(shell=answering(name), change=Recorded(log)))


def trial(tmp_path: Path) -> TrialWriter:
    return TrialWriter(tmp_path / "0001-baseline", facts_of())


def test_machine_is_asked_for_its_survey() -> None:
    assert survey_devices(answering("gpu-server")) == recorded("gpu-server")


def test_all_functions_of_the_device_are_bound(tmp_path: Path) -> None:
    log: list[str] = []
    writer = trial(tmp_path)
    bound = bind_hostdev(host("gpu-server", log), FREE, 128 * GIB, trial=writer)
    assert (bound.address, bound.bar_index) == (FREE, 1)
    assert (bound.bar_start, bound.bar_bytes) == (0x384000000000, 128 * GIB)
    assert log == [f"change: bind {FREE} 0000:3a:00.1"]
    before = json.loads((writer.host / "device.json").read_text())
    facts = recorded("gpu-server").functions[FREE].facts
    assert before == facts.to_json()


def test_refused_device_is_not_bound(tmp_path: Path) -> None:
    log: list[str] = []
    with pytest.raises(BenchError, match="cannot be given to a guest"):
        bind_hostdev(host("gpu-server", log), USED, 128 * GIB, trial=trial(tmp_path))
    assert log == []


def test_device_that_the_kernel_does_not_find_is_the_arms_failure(tmp_path: Path) -> None:
    with pytest.raises(ArmFailedError) as caught:
        bind_hostdev(host("laptop", []), FREE, 128 * GIB, trial=trial(tmp_path))
    assert caught.value.reason == "device-missing"


def test_bar_that_the_kernel_did_not_place_is_the_arms_failure(tmp_path: Path) -> None:
    log: list[str] = []
    with pytest.raises(ArmFailedError, match="did not place the 32GiB BAR") as caught:
        bind_hostdev(host("unassigned", log), "0000:01:00.0", 32 * GIB, trial=trial(tmp_path))
    assert caught.value.reason == "device-not-placed"
    assert log == []
