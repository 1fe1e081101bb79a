"""Boots into staged kernels and back: what the keeper checks, loads, enters and leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keeper import boot, means
from keeper import machine as real
from keeper.changes import leaving
from tests.unit.agents.keeper.machines import (
    EFI,
    RELEASE,
    VERSION,
    Machine,
    made_up,
    secure_boot,
)

CMDLINE = 'root=/dev/vda1 ro barometer.token=77 dyndbg="file x +p"'


@pytest.fixture
def staged(held: Machine) -> Machine:
    """The machine's own kernel is recorded, and the kernel under test is staged."""
    held.done("original")
    held.image()
    return held


def boots(machine: Machine, how: str, **changes: Any) -> dict[str, Any]:
    return machine.ask(
        "boot", how=how, cmdline=CMDLINE, extend=600.0, **{**machine.image(), **changes}
    )


def test_original_kernel_is_recorded_once(held: Machine) -> None:
    first = held.done("original")
    assert first["release"] == RELEASE
    assert first["version"] == VERSION
    assert first["kernel"] == f"/boot/vmlinuz-{RELEASE}"
    assert first["kernel_sha256"] == real.sha256(held.root / f"boot/vmlinuz-{RELEASE}")
    assert first["initrd"] is None
    assert first["default"] == {"loader": "grub", "entry": "debian"}
    assert held.journal() == ["kernel"]
    held.boots(release="7.3.4", token="77")
    assert held.done("original") == first
    assert held.journal() == ["kernel"]


def test_kernel_of_barometers_is_no_original(held: Machine) -> None:
    held.boots(token="77")
    assert held.refused("original").startswith("wrong-kernel: ")
    assert held.journal() == []


def test_restored_kernel_is_proven(staged: Machine) -> None:
    staged.boots(release="7.3.4", token="77")
    assert staged.refused("kernel_restored").startswith("wrong-kernel: the machine runs 7.3.4 ")
    staged.boots(release=RELEASE, token="77")  # the same kernel, booted by barometer
    assert staged.refused("kernel_restored").startswith("wrong-kernel: ")
    assert staged.done("putback", volatile=False) == {"done": [], "failed": []}
    assert staged.refused("release").startswith("unfinished: ")
    staged.boots()
    staged.done("kernel_restored")
    staged.done("kernel_restored")
    staged.done("release")
    assert not (staged.root / "var/lib/barometer").exists()


def test_another_build_of_the_release_is_not_the_original(staged: Machine) -> None:
    staged.file("/proc/sys/kernel/version", "#2 SMP another\n")
    assert staged.refused("kernel_restored").startswith("wrong-kernel: ")


@pytest.mark.parametrize("how", ["kexec", "grub", "systemd-boot"])
@pytest.mark.parametrize("image", ["kernel", "initrd"])
def test_image_that_was_cut_off_is_never_booted(staged: Machine, how: str, image: str) -> None:
    staged_facts = staged.image()
    path = staged.root / f"var/lib/barometer/{image}"
    path.write_bytes(path.read_bytes()[:-1])
    before = staged.all()
    answer = staged.ask("boot", how=how, cmdline=CMDLINE, extend=600.0, **staged_facts)
    assert answer["refused"] == "wrong-image"
    assert answer["message"].startswith(f"/var/lib/barometer/{image} is not what was staged")
    assert staged.text("/log") == ""
    assert staged.all() == before


def test_kernel_is_not_changed_before_the_original_is_recorded(held: Machine) -> None:
    assert boots(held, "kexec")["refused"] == "no-original"


def test_kexec_loads_and_leaves_cleanly(staged: Machine) -> None:
    left = staged.text("/proc/sys/kernel/random/boot_id").strip()
    assert boots(staged, "kexec") == {"boot_id": left, "notes": []}
    load, run = staged.text("/log").splitlines()
    folder = staged.root / "var/lib/barometer"
    assert load == (
        f"kexec -s -l {folder}/kernel --command-line={CMDLINE} --initrd={folder}/initrd"
    )
    assert run.startswith(
        f"systemd-run --quiet --collect --unit=barometer-boot-{staged.token}.service"
        " --property=DefaultDependencies=no /bin/sh -c sleep 1; systemctl -i --no-block kexec"
    )
    assert run.endswith("kexec -e")
    assert staged.journal() == ["kernel", "kexec", "leaving"]
    assert staged.done("status")["leases"][0]["left"] > 590


def test_kernel_that_has_no_signature_is_loaded_the_old_way(staged: Machine) -> None:
    staged.file("/unsigned", "")
    boots(staged, "kexec")
    assert [line.split()[1] for line in staged.text("/log").splitlines()[:2]] == ["-s", "-c"]


def test_kernel_that_cannot_be_loaded_is_a_refusal_with_both_reasons(staged: Machine) -> None:
    staged.file("/fakes/kexec", "#!/bin/sh\necho no $1 >&2; exit 255\n").chmod(0o755)
    answer = boots(staged, "kexec")
    assert answer["refused"] == "kexec"
    assert "no -s" in answer["message"]
    assert "no -c" in answer["message"]
    assert staged.journal() == ["kernel"]
    assert staged.done("status")["leases"][0]["left"] <= 60


def test_kernel_loaded_by_somebody_else_is_not_replaced(staged: Machine) -> None:
    staged.file("/sys/kernel/kexec_loaded", "1\n")
    assert boots(staged, "kexec")["refused"] == "kexec"


def test_loaded_kernel_that_was_not_booted_is_unloaded(staged: Machine) -> None:
    boots(staged, "kexec")
    staged.done("putback", volatile=True)
    assert staged.text("/sys/kernel/kexec_loaded") == "0\n"


def test_grub_boots_an_entry_once(staged: Machine) -> None:
    before = staged.all()
    boots(staged, "grub")
    name = f"barometer-{staged.token}"
    folder = staged.root / "var/lib/barometer"
    entry = staged.text("/boot/grub/custom.cfg")
    assert entry == (
        "# the admin's own\n"
        f"menuentry 'barometer' --unrestricted --id {name} {{\n"
        "\tinsmod part_gpt\n"
        "\tinsmod ext2\n"
        "\tsearch --no-floppy --fs-uuid --set=root 5e1f-uuid\n"
        "\tif linux '/var/lib/barometer/kernel' 'root=/dev/vda1' 'ro' 'barometer.token=77'"
        " 'dyndbg=file x +p'; then\n"
        "\t\tif initrd '/var/lib/barometer/initrd'; then\n"
        "\t\t\tboot\n"
        "\t\tfi\n"
        "\tfi\n"
        "\treboot\n"
        "}\n"
    ).replace(str(folder), "/var/lib/barometer")
    assert means.grub_variable("/boot/grub", "next_entry") == name
    assert "systemctl -i --no-block reboot" in staged.text("/log")
    # GRUB empties its variable when it boots
    staged.file(
        "/boot/grub/grubenv", "# GRUB Environment Block\nsaved_entry=debian\nnext_entry=\n"
    )
    staged.boots(release="7.3.4", token="77")
    staged.done("putback", volatile=False)
    after = staged.all()
    assert {k for k in {*after, *before} if after.get(k) != before.get(k)} == {
        "proc/cmdline", "proc/sys/kernel/osrelease", "var/lib/barometer/journal.jsonl",
    }  # fmt: skip


def test_grub_reads_what_the_kernel_is_on(staged: Machine) -> None:
    staged.file("/abstraction", "diskfilter mdraid1x lvm \n")
    boots(staged, "grub")
    entry = staged.text("/boot/grub/custom.cfg").splitlines()
    assert [line.strip() for line in entry[2:7]] == [
        "insmod diskfilter", "insmod mdraid1x", "insmod lvm", "insmod part_gpt", "insmod ext2",
    ]  # fmt: skip


def test_the_device_mapper_that_grub_probe_loads_is_unloaded(staged: Machine) -> None:
    staged.file("/has-dm", "")
    boots(staged, "grub")
    assert staged.journal() == ["kernel", "modules", "grub-entry", "grub-next", "leaving"]
    assert "dm_mod" in staged.text("/proc/modules")
    staged.file("/running", "running\n")
    staged.done("putback", volatile=True)
    assert "dm_mod" not in staged.text("/proc/modules")


def test_kernel_that_grub_cannot_find_is_not_booted(staged: Machine) -> None:
    staged.file("/fakes/grub-probe", "#!/bin/sh\necho no device >&2; exit 1\n").chmod(0o755)
    refused = boots(staged, "grub")
    assert "failed with exit code 1: no device" in refused["message"]
    assert staged.journal() == ["kernel"]


def entered(machine: Machine, fails: str = "") -> list[str]:
    """Return the commands that GRUB runs for the entry if the command `fails` fails. The shell
    stands in for GRUB, because their `if` is the same."""
    body = machine.text("/boot/grub/custom.cfg").split("{\n")[1].rpartition("}")[0]
    ends = {"boot": "exit", "reboot": "exit", fails: "return 1"}
    grub = "".join(
        f"{name}() {{ echo {name}; {ends.get(name, ':')}; }}\n"
        for name in ("insmod", "search", "linux", "initrd", "boot", "reboot")
    )
    done = subprocess.run(
        ["/bin/sh", "-c", f"{grub}{body}"], capture_output=True, text=True, check=True
    )
    return [line for line in done.stdout.split() if line != "insmod"]


@pytest.mark.parametrize(
    ("fails", "expected"),
    [("", ["search", "linux", "initrd", "boot"]),
     ("search", ["search", "linux", "initrd", "boot"]),
     ("linux", ["search", "linux", "reboot"]),
     ("initrd", ["search", "linux", "initrd", "reboot"]),
     ("boot", ["search", "linux", "initrd", "boot", "reboot"])],
)  # fmt: skip
def test_grub_restarts_the_machine_where_it_cannot_boot_the_kernel(
    staged: Machine, fails: str, expected: list[str]
) -> None:
    boots(staged, "grub")
    assert entered(staged, fails) == expected


def test_grub_boots_a_kernel_that_has_no_initramfs(staged: Machine) -> None:
    boots(staged, "grub", initrd="", initrd_sha256="")
    assert entered(staged) == ["search", "linux", "boot"]
    assert entered(staged, "linux") == ["search", "linux", "reboot"]


@pytest.mark.parametrize("how", ["grub", "systemd-boot"])
def test_boot_loader_is_not_given_a_kernel_that_secure_boot_refuses(
    staged: Machine, how: str
) -> None:
    secure_boot(staged)
    before = staged.all()
    answer = boots(staged, how)
    assert (answer["refused"], answer["message"]) == (
        how, "Secure Boot is on: shim or the firmware refuses a kernel that is not signed"
    )  # fmt: skip
    assert staged.all() == before


def test_entry_of_the_boot_before_is_gone_at_the_next(staged: Machine) -> None:
    boots(staged, "grub")
    staged.boots(release="7.3.4", token="77")
    boots(staged, "grub")
    assert staged.text("/boot/grub/custom.cfg").count("menuentry") == 1
    assert staged.journal() == ["kernel", "grub-entry", "grub-next", "leaving"]
    staged.done("boot", how="reboot", extend=600.0)
    assert staged.text("/boot/grub/custom.cfg") == "# the admin's own\n"
    assert means.grub_variable("/boot/grub", "next_entry") is None
    assert staged.journal() == ["kernel", "leaving"]


def test_entry_that_stays_keeps_the_machine_from_rebooting_into_it(staged: Machine) -> None:
    staged.file("/boot/grub/grubenv", "# GRUB Environment Block\nnext_entry=rescue\n")
    boots(staged, "grub")
    (staged.root / "fakes/grub-editenv").unlink()
    assert staged.refused("boot", how="reboot", extend=600.0) == (
        "boot-entry: an earlier boot's entry stays: the machine has no grub-editenv"
    )


def test_choice_of_the_admins_for_the_next_boot_comes_back(staged: Machine) -> None:
    grubenv = "# GRUB Environment Block\nsaved_entry=debian\nnext_entry=rescue\n"
    staged.file("/boot/grub/grubenv", grubenv)
    boots(staged, "grub")
    staged.done("putback", volatile=False)
    assert staged.text("/boot/grub/grubenv") == grubenv


def oneshot(machine: Machine) -> str | None:
    """Return the entry that systemd-boot boots next."""
    return means.loader_variable("LoaderEntryOneShot")


def changed(before: dict[str, Any], machine: Machine) -> set[str]:
    after = machine.all()
    return {name for name in {*after, *before} if after.get(name) != before.get(name)}


def test_systemd_boot_boots_an_entry_once(staged: Machine) -> None:
    before = staged.all()
    boots(staged, "systemd-boot")
    name = f"barometer-{staged.token}"
    assert staged.text(f"/boot/efi/loader/entries/{name}.conf") == (
        f"title {name}\noptions {CMDLINE}\nlinux /{name}/linux\ninitrd /{name}/initrd\n"
    )
    for copy, path in (("linux", "kernel"), ("initrd", "initrd")):
        assert (staged.root / f"boot/efi/{name}/{copy}").read_bytes() == (
            staged.root / f"var/lib/barometer/{path}"
        ).read_bytes()
    assert oneshot(staged) == f"{name}.conf"
    staged.done("putback", volatile=False)
    assert changed(before, staged) == {"var/lib/barometer/journal.jsonl"}


def test_entry_of_systemd_boot_is_removed_under_a_kernel_without_efi_variables(
    staged: Machine,
) -> None:
    boots(staged, "systemd-boot")
    staged.boots(release="7.3.4-rt", token="77")
    shutil.rmtree(staged.root / EFI[1:])
    (staged.root / "fakes/bootctl").unlink()
    staged.done("boot", how="reboot", extend=600.0)
    assert staged.journal() == ["kernel", "leaving"]
    assert not (staged.root / f"boot/efi/barometer-{staged.token}").exists()


def test_choice_of_the_admins_for_systemd_boots_next_boot_is_respected(staged: Machine) -> None:
    real.run("bootctl", "set-oneshot", "rescue.conf")
    before = staged.all()
    assert "rescue.conf is to be booted next" in boots(staged, "systemd-boot")["message"]
    assert staged.all() == before


def test_choice_that_the_admin_made_since_is_left(staged: Machine) -> None:
    boots(staged, "systemd-boot")
    real.run("bootctl", "set-oneshot", "rescue.conf")
    staged.done("putback", volatile=False)
    assert oneshot(staged) == "rescue.conf"


def test_choice_that_the_firmware_does_not_keep_is_refused(staged: Machine) -> None:
    script = staged.text("/fakes/bootctl").replace("set-oneshot)", "set-oneshot) exit ;;\n_)")
    staged.file("/fakes/bootctl", script).chmod(0o755)
    before = staged.all()
    assert boots(staged, "systemd-boot")["message"] == (
        f"LoaderEntryOneShot is None, not barometer-{staged.token}.conf, after bootctl set-oneshot"
    )
    staged.done("putback", volatile=False)
    assert changed(before, staged) == {"var/lib/barometer/journal.jsonl"}


def test_entry_that_would_be_the_default_is_refused_and_removed_at_once(staged: Machine) -> None:
    """Without sort-keys systemd-boot takes the last entry by name."""
    (staged.root / "boot/efi/loader/entries/debian.conf").unlink()
    staged.file("/boot/efi/loader/entries/arch.conf", "title Arch\n")
    before = staged.all()
    answer = boots(staged, "systemd-boot")
    assert answer["refused"] == "systemd-boot"
    assert "would take barometer-" in answer["message"]
    assert changed(before, staged) == {"var/lib/barometer/journal.jsonl"}
    assert staged.journal() == ["kernel"]


def test_folder_of_entries_that_was_missing_is_missing_again(staged: Machine) -> None:
    shutil.rmtree(staged.root / "boot/efi/loader")
    script = staged.text("/fakes/bootctl").replace("list)", "list) exit ;;\n_)")
    staged.file("/fakes/bootctl", script).chmod(0o755)  # its own kernel is a type #2 entry
    before = staged.all()
    assert "refused" not in boots(staged, "systemd-boot")
    assert oneshot(staged) is not None
    staged.done("putback", volatile=False)
    assert changed(before, staged) == {"var/lib/barometer/journal.jsonl"}


def test_folder_of_entries_that_was_missing_stays_where_it_is_used_by_then(
    staged: Machine,
) -> None:
    shutil.rmtree(staged.root / "boot/efi/loader")
    script = staged.text("/fakes/bootctl").replace("list)", "list) exit ;;\n_)")
    staged.file("/fakes/bootctl", script).chmod(0o755)
    boots(staged, "systemd-boot")
    staged.file("/boot/efi/loader/loader.conf", "timeout 3\n")
    assert staged.done("putback", volatile=False)["failed"] == []
    loader = staged.root / "boot/efi/loader"
    assert [path.name for path in loader.iterdir()] == ["loader.conf"]


def test_kernel_that_is_no_efi_program_is_not_given_to_systemd_boot(staged: Machine) -> None:
    image = staged.image()
    kernel = staged.file(image["kernel"], "a kernel without CONFIG_EFI_STUB")
    image["kernel_sha256"] = real.sha256(kernel)
    before = staged.all()
    answer = staged.ask("boot", how="systemd-boot", cmdline=CMDLINE, extend=600.0, **image)
    assert answer["message"] == (
        "/var/lib/barometer/kernel is no EFI program, which systemd-boot needs (CONFIG_EFI_STUB)"
    )
    assert staged.all() == before


@given(room=st.integers(0, 4 << 20))
def test_kernel_and_initramfs_have_room_or_nothing_is_changed(room: int) -> None:
    with made_up() as made:
        made.acquire()
        made.done("original")
        image = made.image()
        before = made.all()
        needed = (1 << 20) + sum(
            (made.root / image[name][1:]).stat().st_size for name in ("kernel", "initrd")
        )
        blocks = types.SimpleNamespace(f_bavail=room // 512, f_frsize=512)
        with mock.patch.object(os, "statvfs", return_value=blocks):
            answer = made.ask("boot", how="systemd-boot", cmdline=CMDLINE, extend=600.0, **image)
        if room // 512 * 512 >= needed:
            assert "refused" not in answer
            return
        assert (answer["refused"], answer["message"]) == (
            "disk-full", f"/boot/efi has {room >> 20} MiB of room, and the kernel with its"
            " initramfs needs 2 MiB",
        )  # fmt: skip
        assert made.all() == before


def test_way_to_boot_that_is_not_known_is_refused(staged: Machine) -> None:
    assert boots(staged, "magic")["refused"] == "bad-request"
    assert staged.text("/log") == ""


@pytest.mark.parametrize("systemd", [True, False])
@pytest.mark.parametrize("verb", ["kexec", "reboot"])
def test_machine_is_taken_down_though_its_services_hang(
    staged: Machine, systemd: bool, verb: str
) -> None:
    """A real shell runs the script; every program in it is made up."""
    if not systemd:
        (staged.root / "run/systemd/system").rmdir()
    commands = {
        "sleep": "[ $1 != 30 ] || exec /usr/bin/sleep 30",
        # returns only when the script also sleeps beside it
        "sync": 'until /usr/bin/grep -q "sleep 30" $ROOT/log; do /usr/bin/sleep 0.01; done',
    }
    for name in ("sleep", "sync", "systemctl", "kexec"):
        script = f"#!/bin/sh\necho {name} $* >> $ROOT/log\n{commands.get(name, '')}\n"
        staged.file(f"/fakes/{name}", script).chmod(0o755)
    sysrq = staged.file("/proc/sysrq-trigger", "")
    sysrq.unlink()
    os.mkfifo(sysrq)
    script = boot._script(verb, "kexec -e" if verb == "kexec" else "echo b > {sysrq}")
    reader = subprocess.Popen(["/usr/bin/cat", sysrq], stdout=subprocess.PIPE, text=True)
    keep_open = os.open(sysrq, os.O_WRONLY)
    subprocess.run(["/bin/sh", "-c", script], check=True, timeout=20)
    os.close(keep_open)
    written = reader.communicate(timeout=20)[0]
    clean = [f"systemctl -i --no-block {verb}", "sleep 180"] if systemd else []
    hard = ["kexec -e"] if verb == "kexec" else []
    log = staged.text("/log").splitlines()
    assert log[: len(clean) + 1] == ["sleep 1", *clean]
    assert {*log[len(clean) + 1 :][:2]} == {"sync", "sleep 30"}  # side by side
    assert log[len(clean) + 3 :] == ["sleep 1", *hard]
    assert written.split() == ["s", "u", *([] if hard else ["b"])]


def test_disk_that_hangs_does_not_keep_the_machine_up(
    staged: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "_SYNC_SECONDS", 1)
    (staged.root / "run/systemd/system").rmdir()
    for name, script in (("sleep", "exec /usr/bin/sleep 0.$1"), ("sync", "exec /usr/bin/sleep 60"),
                         ("kexec", "echo $* > $ROOT/gone")):  # fmt: skip
        staged.file(f"/fakes/{name}", f"#!/bin/sh\n{script}\n").chmod(0o755)
    argv = ["/bin/sh", "-c", boot._script("kexec", "kexec -e")]
    process = subprocess.Popen(argv, start_new_session=True)
    try:
        assert process.wait(20) == 0
        assert staged.text("/gone") == "-e\n"
    finally:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def bare(staged: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine without systemd. Processes that the test starts there end with it."""
    (staged.root / "run/systemd/system").rmdir()
    start, started = subprocess.Popen, []

    def popen(*argv: Any, **how: Any) -> Any:
        started.append(start(*argv, **how))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    yield staged
    for process in started:
        process.kill()
        process.wait(20)
        if process.stdin is not None:
            process.stdin.close()


LEAVING = "echo $$ > $ROOT/left; while :; do /usr/bin/sleep 0.1; done"


def left(machine: Machine) -> str | None:
    """Return the process that took a machine without systemd down, or waits to."""
    return real.text("/left") or None


def test_machine_without_systemd_is_taken_down_by_a_process_of_its_own(bare: Machine) -> None:
    leaving.leave(leaving.plan(LEAVING, "barometer-boot-7.service", "77"))
    deadline = time.monotonic() + 20
    while (pid := left(bare)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert json.loads(real.text(leaving.PID) or "")["pid"] == int(pid)
    assert os.getsid(int(pid)) == int(pid)
    assert leaving.stay({"unit": ""}) == "boot: called off"
    assert os.waitpid(int(pid), 0)[1] == signal.SIGKILL
    assert leaving.stay({"unit": ""}) == "boot: called off"  # only once


def test_machine_without_systemd_stays_up_where_the_way_to_call_it_off_is_not_known(
    bare: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper is killed between the start of that process and its note."""

    def killed(*_: object) -> None:
        time.sleep(0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(real, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        leaving.leave(leaving.plan(LEAVING, "barometer-boot-7.service", "77"))
    assert left(bare) is None


def x86_image(version: str) -> str:
    """Return the head of a kernel image, as the x86 boot protocol defines it."""
    head = bytearray(0x400)
    head[0x202:0x206], head[0x20E:0x210] = b"HdrS", (0x100).to_bytes(2, "little")
    return (head[:0x300] + version.encode() + b"\0rest").decode("latin-1")


@pytest.mark.parametrize(
    ("said", "content", "expected"),
    [("/own", x86_image(f"{RELEASE} (gcc) {VERSION}"), "/boot/own"),
     ("(hd0,gpt2)/boot/own", x86_image(f"{RELEASE} (gcc) {VERSION}"), "/boot/own"),
     ("/own", x86_image(f"{RELEASE}1 (gcc)"), None),
     ("/own", x86_image("7.3.4 (gcc)"), None), ("/own", "its own kernel", None),
     ("/own", "", None), ("own", x86_image(RELEASE), None)],
)  # fmt: skip
def test_kernel_of_another_name_is_the_one_that_says_the_release(
    held: Machine, said: str, content: str, expected: str | None
) -> None:
    (held.root / f"boot/vmlinuz-{RELEASE}").unlink()
    held.file("/boot/own", content)
    held.file("/proc/cmdline", f"BOOT_IMAGE={said} ro\n")
    assert held.done("original")["kernel"] == expected


def test_kernel_that_is_named_by_its_release_is_taken_before_any_other(held: Machine) -> None:
    held.file("/boot/own", x86_image(f"{RELEASE} (gcc)"))
    held.file("/proc/cmdline", "BOOT_IMAGE=/own ro\n")
    assert held.done("original")["kernel"] == f"/boot/vmlinuz-{RELEASE}"


def test_kernel_that_its_admin_has_put_in_may_be_kept(staged: Machine) -> None:
    staged.done("claim", paths=["/boot/x"])
    staged.boots(release="6.12.110-amd64")
    assert staged.done("putback", volatile=False)["failed"] == []
    assert staged.refused("kernel_restored").startswith("wrong-kernel: ")
    staged.boots(release="6.12.110-amd64", token="77")
    assert staged.refused("kernel_restored", keep=True).startswith("wrong-kernel: ")
    staged.boots(release="6.12.110-amd64")
    staged.done("kernel_restored", keep=True)
    staged.done("release")
    assert not (staged.root / "var/lib/barometer").exists()


def test_boot_that_nobody_waits_for_is_called_off(staged: Machine) -> None:
    boots(staged, "kexec")
    staged.file("/running", "running\n")
    assert "boot: called off" in staged.done("putback", volatile=True)["done"]
    asked = [line for line in staged.text("/log").splitlines() if line.startswith("systemctl")]
    assert asked[0] == f"systemctl stop barometer-boot-{staged.token}.service"
    assert staged.text("/sys/kernel/kexec_loaded").strip() == "0"


def test_machine_that_goes_down_already_is_waited_for(staged: Machine) -> None:
    boots(staged, "kexec")
    staged.file("/running", "stopping\n")
    (failed,) = staged.done("putback", volatile=True)["failed"]
    assert (failed["kind"], failed["why"]) == (
        "leaving", "the machine is going down for a boot"
    )  # fmt: skip
    staged.boots()
    assert staged.done("putback", volatile=True)["failed"] == []


def test_status_of_a_machine_under_way(staged: Machine) -> None:
    boots(staged, "kexec")
    status = staged.done("status")
    written = json.loads(staged.text("/var/lib/barometer/original.json"))
    assert {**written, **status["original"]} == written
    assert [entry["kind"] for entry in status["journal"]] == ["kernel", "kexec", "leaving"]
    assert status["release"] == RELEASE
