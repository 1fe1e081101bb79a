"""Marks are lines with a secret token, written by programs in the machines."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.machine.guest.watching import boot_mark
from orchestrator.machine.nested.marks import sshd_mark, start_failure
from orchestrator.machine.runner.images import GUESTS
from orchestrator.machine.transport.keys import RunKeys

TOKEN = "158648b07eec"
COMMAND_LINE = f"console=ttyS0 panic=-1 barometer.token={TOKEN} quiet"


def test_mark_is_a_line_with_the_token_of_the_boot() -> None:
    said = f"[    3.1] fine\nbarometer: sshd is up {TOKEN}\n[    3.2] more"
    assert sshd_mark(TOKEN).search(said)
    assert sshd_mark(TOKEN).search(f"barometer: sshd is up {TOKEN}[    3.2] more\n\n")
    assert not sshd_mark("0123456789ab").search(said)
    assert start_failure(TOKEN).search(f"[    3.1] barometer: start: {TOKEN} no disk")
    assert start_failure(TOKEN).search(f"[    3.1][    T1] barometer: start: {TOKEN} no disk")


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), min_size=1)


@given(WORDS, WORDS)
def test_words_of_others_are_no_mark(before: str, after: str) -> None:
    said = "\n".join(
        [
            f"{before}barometer: sshd is up {TOKEN}",
            f"barometer: sshd is up {TOKEN}.{after}",
            "barometer: sshd is up",
            f"[    0.000000] Command line: barometer: sshd is up {COMMAND_LINE}",
        ]
    )
    assert not sshd_mark(TOKEN).search(said)
    said = f"[    0.0] foo {before} barometer: start: {TOKEN} x\nbarometer: start: no disk"
    assert not start_failure(TOKEN).search(said)


def lines_of(script: Path, *needles: str) -> str:
    """Return the lines of a shell script that contain one of the words, as a script of their
    own."""
    text = script.read_text().splitlines()
    return "\n".join(line for line in text if any(needle in line for needle in needles))


@pytest.mark.parametrize("script", ["host/rootfs/usr/lib/barometer/first", "host/initramfs-init"])
@pytest.mark.parametrize(
    "cmdline", [COMMAND_LINE, f"barometer.token={TOKEN}", f"root=/dev/vda barometer.token={TOKEN}"]
)
def test_first_programs_find_the_token_on_the_command_line(
    tmp_path: Path, script: str, cmdline: str
) -> None:
    (tmp_path / "cmdline").write_text(cmdline + "\n")
    found = lines_of(GUESTS / script, "read -r words", "token=${words")
    found = found.replace("/proc/cmdline", str(tmp_path / "cmdline"))
    failing = lines_of(GUESTS / script, "fail() {").replace("/dev/kmsg", str(tmp_path / "kmsg"))
    failing = re.sub(r"(\$b )?sleep 1;.*", "}", failing).replace("$b ", "")
    done = f"{failing}\n{found}\nfail no disk"
    subprocess.run(["sh", "-c", done], check=True)
    assert start_failure(TOKEN).search("[    3.1] " + (tmp_path / "kmsg").read_text())


@pytest.mark.parametrize(
    ("script", "file"),
    [
        ("guest/init", "/barometer/token"),
        ("disk/rootfs/usr/lib/barometer/mark.sh", "/etc/barometer/token"),
    ],
)
def test_guests_take_the_token_from_their_keys(tmp_path: Path, script: str, file: str) -> None:
    keys = RunKeys.make()
    assert keys.guest_token != RunKeys.make().guest_token
    (tmp_path / "token").write_bytes(keys.for_guest()["barometer/token"])
    said = lines_of(GUESTS / script, "read -r token", "read -r uptime", "boot mark ").replace(
        "/dev/console", "/dev/stdout"
    )
    assert file in said
    done = subprocess.run(
        ["sh", "-c", said.replace(file, str(tmp_path / "token"))],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    [line] = [line for line in done.stdout.splitlines() if line]
    assert line.startswith(boot_mark(keys.guest_token))
    assert re.fullmatch(r"barometer: boot mark [0-9a-f]{12}, uptime [0-9.]+", line)
