from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.agents.loading import AGENTS
from tests.unit.examples import share
from tests.unit.machines import MACHINES, RECORDED, Machine, gpu_server, survey_of, workstation

NAMES = sorted(MACHINES)


def ran(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", AGENTS / "survey.py", *arguments], capture_output=True, text=True,
        check=False, timeout=30, env={"BAROMETER_ROOT": str(root)},
    )  # fmt: skip


ODD = (b"", b"-1", b"0x", b"a b c d e f g h", b"1 2 3 4 5 - 6", b"9" * 40)


def functions(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {found["address"]: found for found in said["functions"]}


def users(said: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {user["name"]: user for user in said["users"] if user["kind"] == kind}


@pytest.mark.parametrize("name", NAMES)
def test_machine_is_described_as_recorded(name: str, tmp_path: Path) -> None:
    recorded = json.loads((RECORDED / f"{name}.json").read_text())
    assert survey_of(MACHINES[name](tmp_path).root) == recorded


def test_every_machine_is_recorded() -> None:
    assert sorted(path.stem for path in RECORDED.glob("*.json")) == NAMES


def test_program_says_the_same_as_json(tmp_path: Path) -> None:
    gpu_server(tmp_path)
    done = ran(tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == survey_of(tmp_path)


def test_functions_that_are_asked_for_come_alone(tmp_path: Path) -> None:
    gpu_server(tmp_path)
    said = json.loads(ran(tmp_path, "0000:3a:00.0", "0000:39:00.0").stdout)
    whole = functions(survey_of(tmp_path))
    assert said == {"functions": [whole["0000:3a:00.0"], whole["0000:39:00.0"]]}


def test_function_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = ran(tmp_path, "ffff:ff:1f.7")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no such PCI function: ffff:ff:1f.7" in done.stderr


def test_this_machine_is_described() -> None:
    done = ran(Path("/"))
    assert done.returncode == 0, done.stderr
    there = Path("/sys/bus/pci/devices")
    listed = sorted(path.name for path in there.iterdir()) if there.exists() else []
    assert list(functions(json.loads(done.stdout))) == listed


def test_function_has_its_facts(tmp_path: Path) -> None:
    card = functions(survey_of(gpu_server(tmp_path).root))["0000:39:00.0"]
    assert card["resource"][1] == "0x0000380000000000 0x0000381fffffffff 0x0000000000102200"
    assert card["resizable"] == {"1": [1 << shift for shift in range(26, 38)]}
    assert (card["iommu_group"], card["group_type"]) == ("40", "DMA-FQ")
    assert card["group_devices"] == ["0000:39:00.0", "0000:39:00.1"]
    assert (card["driver"], card["module"], card["module_use"]) == ("nvidia", "nvidia", 1)
    assert card["parents"] == ["0000:36:01.0", "0000:37:00.0", "0000:38:00.0"]
    assert (card["command"], card["numa_node"], card["driver_override"]) == (0x0406, 1, None)


def test_device_that_sleeps_is_not_woken(tmp_path: Path) -> None:
    machine = MACHINES["laptop"](tmp_path)
    card = tmp_path / machine.path("0000:02:00.0").lstrip("/")
    assert functions(survey_of(tmp_path))["0000:02:00.0"]["resizable"] is None
    assert functions(survey_of(tmp_path))["0000:02:00.0"]["command"] is None
    (card / "power/runtime_status").write_text("active\n")
    assert functions(survey_of(tmp_path))["0000:02:00.0"]["resizable"] == {
        "1": [64 << 20, 128 << 20, 256 << 20]
    }
    assert functions(survey_of(tmp_path))["0000:02:00.0"]["command"] == 0x0406


@pytest.mark.parametrize("start", ["1200", "1201", "1202"])
def test_ssh_connection_is_found_through_sudo(tmp_path: Path, start: str) -> None:
    gpu_server(tmp_path)
    (tmp_path / "proc/net/route").write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask\n"
        "eno1np0 0000010A 00000000 0001 0 0 0 0000FFFF\n"
        "eno2np1 00000A0A 00000000 0001 0 0 0 0000FFFF\n"
    )
    (tmp_path / "proc/self").unlink()
    (tmp_path / "proc/self").symlink_to(start)
    found = users(survey_of(tmp_path), "network")
    assert found["eno1np0"]["serves"] == ["SSH connection"]
    assert found["eno2np1"]["serves"] == []


def test_the_longest_route_is_the_one_of_a_connection(tmp_path: Path) -> None:
    gpu_server(tmp_path)
    (tmp_path / "proc/net/route").write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask\n"
        "eno1np0 00000000 0100010A 0003 0 0 0 00000000\n"
        "eno2np1 0000010A 00000000 0001 0 0 0 0000FFFF\n"
        "bond0 0000010A 00000000 0201 0 0 0 00FFFFFF\n"  # a reject route
    )
    found = users(survey_of(tmp_path), "network")
    assert found["eno1np0"]["serves"] == ["default route"]
    assert found["eno2np1"]["serves"] == ["SSH connection"]


def test_mapped_address_is_an_address_of_ipv4(tmp_path: Path) -> None:
    gpu_server(tmp_path)
    environment = tmp_path / "proc/1200/environ"
    environment.write_text("SSH_CONNECTION=::ffff:10.1.0.9 50122 ::ffff:10.1.0.20 22\0")
    assert "SSH connection" in users(survey_of(tmp_path), "network")["eno1np0"]["serves"]


def test_console_is_on_the_first_framebuffer_while_it_is_bound(tmp_path: Path) -> None:
    machine = gpu_server(tmp_path)
    card = f"{machine.path('0000:39:00.0')}/graphics/fb1"
    machine.folder(card)
    machine.link("/sys/class/graphics/fb1", card)
    found = users(survey_of(tmp_path), "display")
    assert {name: user["serves"] for name, user in found.items()} == {
        "fb0": ["console"],
        "fb1": [],
    }
    machine.file("/sys/class/vtconsole/vtcon1/bind", "0")
    assert users(survey_of(tmp_path), "display")["fb0"]["serves"] == []


def test_only_what_is_on_usb_is_plugged_in(tmp_path: Path) -> None:
    found = users(survey_of(gpu_server(tmp_path).root), "input")
    assert [user["function"] for user in found.values()] == ["0000:00:14.0"]


def test_container_has_the_node_under_its_own_dev(tmp_path: Path) -> None:
    workstation(tmp_path).process(950, "python3", "/dri/card0", "/srv/dri/card0")
    found = users(survey_of(tmp_path), "open")
    assert found["/dev/dri/card0"]["serves"] == ["Xorg (800)", "python3 (950)"]


def test_process_that_cannot_be_asked_is_counted(tmp_path: Path) -> None:
    workstation(tmp_path)
    shutil.rmtree(tmp_path / "proc/800/fd")
    (tmp_path / "proc/800/fd").write_text("")
    said = survey_of(tmp_path)
    assert said["unread"] == 1
    assert "/dev/dri/card0" not in users(said, "open")


def test_disk_with_several_paths_is_open_on_its_controllers(tmp_path: Path) -> None:
    gpu_server(tmp_path).process(950, "fio", "/dev/ng1n1")
    assert users(survey_of(tmp_path), "open")["/dev/ng1n1"]["function"] == "0000:02:00.0"


def test_mount_point_with_a_space(tmp_path: Path) -> None:
    workstation(tmp_path)
    (tmp_path / "proc/900/mountinfo").write_text(
        "30 22 8:1 / /srv/my\\040data rw - ext4 /dev/sda1 rw\n"
    )
    assert users(survey_of(tmp_path), "disk")["sda"]["serves"] == ["/srv/my data"]


def test_swap_is_known_by_its_name(tmp_path: Path) -> None:
    workstation(tmp_path)
    (tmp_path / "proc/swaps").write_text("Filename Type Size Used Priority\n/dev/sdb1 partition\n")
    assert "swap" in users(survey_of(tmp_path), "disk")["sdb"]["serves"]


def test_an_empty_machine_has_nothing(tmp_path: Path) -> None:
    assert survey_of(tmp_path) == {"iommus": [], "functions": [], "users": [], "unread": 0}


def files(root: Path) -> list[Path]:
    """Return the tree's files, without following links."""
    found = [Path(at) / name for at, _, names in os.walk(root) for name in names]
    links = [Path(at) / n for at, names, _ in os.walk(root) for n in names
             if (Path(at) / n).is_symlink()]  # fmt: skip
    return sorted({*found, *links})


def damage(path: Path, how: str, content: bytes) -> None:
    path.unlink()
    if how == "other":
        path.write_bytes(content)
    elif how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "up":
        path.symlink_to("..")


@share(0.6)
@given(st.data())
def test_odd_machine_is_described_all_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("odd")
    try:
        MACHINES[data.draw(st.sampled_from(NAMES))](root)
        there = files(root)
        for path in data.draw(st.lists(st.sampled_from(there), max_size=25, unique=True)):
            damage(
                path,
                data.draw(st.sampled_from(["gone", "other", "folder", "loop", "up"])),
                data.draw(st.binary(max_size=200) | st.sampled_from(ODD)),
            )  # fmt: skip
        json.dumps(survey_of(root))
    finally:
        shutil.rmtree(root)


@share(0.3)
@given(st.text(), st.text(), st.text())
def test_odd_tables_are_read_all_the_same(
    tmp_path_factory: pytest.TempPathFactory, routes: str, mounts: str, connection: str
) -> None:
    root = tmp_path_factory.mktemp("tables")
    try:
        machine = Machine(root)
        tables = {"net/route": routes, "net/ipv6_route": routes, "swaps": mounts,
                  "self/mountinfo": mounts, "self/environ": f"SSH_CONNECTION={connection}",
                  "consoles": mounts}  # fmt: skip
        for name, table in tables.items():
            machine.file(f"/proc/{name}", f"head\n{table}".encode())
        json.dumps(survey_of(root))
    finally:
        shutil.rmtree(root)


IOMEM = """\
00000000-00000fff : Reserved
380000000000-383fffffffff : PCI Bus 0000:38
  380000000000-381fffffffff : 0000:39:00.0
    380000000000-3800007e8fff : BOOTFB
  384000000000-385fffffffff : 0000:3a:00.0
    384000000000-385fffffffff : vfio-pci
"""


def test_who_claims_a_bar_is_read_from_the_memory_map(tmp_path: Path) -> None:
    machine = gpu_server(tmp_path)
    machine.file("/proc/iomem", IOMEM)
    found = functions(survey_of(machine.root))
    assert found["0000:39:00.0"]["claims"] == ["BOOTFB"]
    assert found["0000:3a:00.0"]["claims"] == []
    # whoever is not root sees no addresses
    machine.file("/proc/iomem", re.sub(r"[0-9a-f]{12}", "0" * 12, IOMEM))
    assert functions(survey_of(machine.root))["0000:39:00.0"]["claims"] == []


def test_a_device_that_reads_all_ones_does_not_answer(tmp_path: Path) -> None:
    machine = gpu_server(tmp_path)
    config = next((tmp_path / "sys/devices").rglob("0000:3a:00.0/config"))
    config.write_bytes(b"\xff" * 64)
    found = functions(survey_of(machine.root))
    assert (found["0000:3a:00.0"]["answers"], found["0000:39:00.0"]["answers"]) == (False, True)


def test_ranges_that_the_iommu_keeps_are_listed(tmp_path: Path) -> None:
    machine = gpu_server(tmp_path)
    card = functions(survey_of(machine.root))["0000:3a:00.0"]
    region = "0x00000000000a0000 0x00000000000bffff direct"
    machine.file(f"/sys/kernel/iommu_groups/{card['iommu_group']}/reserved_regions", region)
    assert functions(survey_of(machine.root))["0000:3a:00.0"]["reserved_regions"] == [region]
