"""A machine with UEFI: systemd-boot boots a kernel once, from its EFI system partition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.machine.metal.boots import read_running_kernel
from orchestrator.machine.metal.keeper import MACHINE, Image, Keeper
from orchestrator.machine.transport import remote
from tests.lab.machine.standin import StandIn, standin
from tests.lab.metal_runs import state_of

pytestmark = pytest.mark.metal

STAGED = "/var/lib/barometer/staged"
ESP = "/boot/efi"
ONESHOT = "/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


@pytest.fixture(scope="module")
def uefi(tmp_path_factory: pytest.TempPathFactory, means: None) -> Iterator[StandIn]:
    with standin(tmp_path_factory.mktemp("uefi"), loader="systemd-boot") as machine:
        yield machine


@pytest.fixture(scope="module")
def link(uefi: StandIn) -> Iterator[remote.Link]:
    link = remote.Link(remote.resolve_address("metal", uefi.ssh_config))
    yield link
    link.close()


@pytest.fixture(scope="module")
def keeper(uefi: StandIn, link: remote.Link) -> Iterator[Keeper]:
    """A keeper with a lease, which is released at the end. The machine is then as before."""
    before = state_of(uefi)
    keeper = Keeper(link.shell)
    keeper.acquire([MACHINE], "a test", ttl=600)
    keeper.original()
    yield keeper
    assert keeper.putback().failed == []
    keeper.kernel_restored()
    keeper.release()
    assert state_of(uefi) == before


@pytest.fixture(scope="module")
def image(uefi: StandIn, keeper: Keeper) -> Image:
    """A kernel under test: another copy of the machine's own."""
    sums = uefi.ssh(
        f"mkdir {STAGED} && cd {STAGED} && cp /boot/vmlinuz-* kernel"
        " && cp /boot/initrd.img-* initrd && sha256sum kernel initrd"
    ).split()
    return Image(f"{STAGED}/kernel", sums[0], f"{STAGED}/initrd", sums[2])


def test_it_can_boot_a_kernel_once(keeper: Keeper) -> None:
    found = keeper.detect()
    assert found["systemd-boot"] == {
        "usable": True, "why": "", "prefix": "", "folder": ESP,
    }  # fmt: skip
    assert found["grub"]["usable"] is False


@pytest.mark.parametrize(
    ("change", "undo", "why"),
    [
        # systemd-boot takes the last entry by name, but entries with a sort-key come first
        pytest.param(
            "cd {esp}/loader/entries; for own in *; do mv $own /root; done;"
            " sed /sort-key/d /root/*.conf > arch.conf",
            "cd {esp}/loader/entries; rm arch.conf; mv /root/*.conf .",
            "systemd-boot would take barometer-[0-9]+ for the machine's default",
            id="would-be-default",
        ),
        # the file's clusters are allocated, though nothing is written to them
        pytest.param(
            "touch {esp}/full; fallocate --keep-size --length 495MiB {esp}/full", "rm {esp}/full",
            "/boot/efi has [0-9] MiB of room, and the kernel with its initramfs needs 17 MiB",
            id="no-room", marks=pytest.mark.full,
        ),
        pytest.param(
            "bootctl set-oneshot rescue.conf", "bootctl set-oneshot ''",
            "rescue.conf is to be booted next already",
            id="chosen-by-admin", marks=pytest.mark.full,
        ),
    ],
)  # fmt: skip
def test_what_would_endanger_the_machine_is_refused_and_changes_nothing(
    uefi: StandIn, keeper: Keeper, image: Image, change: str, undo: str, why: str
) -> None:
    look = f"find {ESP} -printf '%p %s\\n' | sort; ls /sys/firmware/efi/efivars; bootctl list"
    uefi.ssh(change.format(esp=ESP))
    try:
        before = uefi.ssh(look)
        with pytest.raises(BenchError, match=why):
            keeper.boot("systemd-boot", image, "barometer.token=7", extend=600)
        assert uefi.ssh(look) == before
    finally:
        uefi.ssh(undo.format(esp=ESP))


def test_entry_boots_once_and_a_reset_boots_the_machines_own_kernel(
    uefi: StandIn, link: remote.Link, keeper: Keeper, image: Image
) -> None:
    own = read_running_kernel(link.shell())
    words = f"{own.cmdline.partition(' ')[2]} barometer.token=test"
    left, notes = keeper.boot("systemd-boot", image, words, extend=600)
    assert (left, notes) == (own.boot_id, [])
    link.close()
    uefi.wait_for_boot(after=left)
    tested = read_running_kernel(link.shell())
    assert (tested.token, tested.release) == ("test", own.release)
    assert f"\\barometer-{keeper.token}\\initrd" in tested.cmdline
    uefi.ssh(f"! test -e {ONESHOT} && test -e {ESP}/loader/entries/barometer-{keeper.token}.conf")
    link.close()
    uefi.reset()
    uefi.wait_for_boot(after=tested.boot_id)
    assert read_running_kernel(link.shell()).cmdline == own.cmdline
