"""Boot another kernel, and record which one to come back to."""

from __future__ import annotations

import base64
import contextlib
import re
import shlex
from typing import Any

from keeper import leases, machine, means
from keeper.changes import entries, leaving
from keeper.journaling import records, set_aside
from keeper.journaling.records import Shape, UnreadableError
from keeper.machine import RefusedError
from keeper.steps import BOOT_KINDS, Steps

ORIGINAL = f"{machine.STATE}/original.json"
_TEXT: Shape = (str, None)
_ORIGINAL: Shape = {
    "release": str, "version": str, "cmdline": str, "boot_id": str, "machine_id": _TEXT,
    "kernel": _TEXT, "kernel_sha256": _TEXT, "initrd": _TEXT, "initrd_sha256": _TEXT,
    "default": {"loader": str, "entry": str},
}  # fmt: skip
_LONGEST = 1 << 20
_SYNC_SECONDS = 30


def original(steps: Steps) -> dict[str, Any]:
    """Return the facts of the kernel that is to run again at the end. They are recorded before the
    first change of kernels, and read from the record later. Raises RefusedError if the record is
    damaged, or if there is none and the machine runs a kernel that barometer booted."""
    if any(entry.kind == "kernel" for entry in steps.journal.entries):
        if (known := known_original()) is None:
            raise RefusedError("original-damaged", f"{ORIGINAL} cannot be read")
        return known
    if machine.is_under_test():
        raise RefusedError(
            "wrong-kernel", "the machine runs a kernel that barometer booted, not its own"
        )
    kernel, initrd = _image()
    facts = {
        "release": machine.release(),
        "version": machine.version(),
        "cmdline": machine.cmdline(),
        "boot_id": machine.boot_id(),
        "machine_id": machine.text("/etc/machine-id"),
        "kernel": kernel,
        "kernel_sha256": machine.sha256(machine.at(kernel)) if kernel else None,
        "initrd": initrd,
        "initrd_sha256": machine.sha256(machine.at(initrd)) if initrd else None,
        "default": means.default_entry(),
    }
    machine.replace(machine.at(ORIGINAL), records.seal(facts) + b"\n")
    steps.take("kernel", release=facts["release"], boot_id=facts["boot_id"])
    return facts


def known_original() -> dict[str, Any] | None:
    """Return the record of the original kernel; None if there is none, or it cannot be read."""
    try:
        return records.unseal(machine.read_plain(machine.at(ORIGINAL), _LONGEST), _ORIGINAL)
    except (OSError, UnreadableError):
        return None


def _image() -> tuple[str | None, str | None]:
    """Return the files of the running kernel and its initramfs, as far as they can be found."""
    release = machine.release()
    kernels = [f"/boot/vmlinuz-{release}", f"/lib/modules/{release}/vmlinuz"]
    said = re.search(r"(?:^| )BOOT_IMAGE=(?:\([^)]*\))?(/\S+)", machine.cmdline())
    if said:  # the path is relative to the file system that GRUB found it on: / or /boot
        named = (said[1], f"/boot{said[1]}")  # since the boot another kernel may have got the name
        kernels += [path for path in named if _release_of(path) == release]
    initrds = [
        f"/boot/{name}" for name in (f"initrd.img-{release}", f"initramfs-{release}.img",
                                     f"initrd-{release}")
    ]  # fmt: skip

    def first(paths: list[str]) -> str | None:
        return next((path for path in paths if machine.at(path).is_file()), None)

    return first(kernels), first(initrds)


def _release_of(path: str) -> str:
    """Return the release of a kernel image for x86, or "" if it has none: `kernel_version` in the
    header points to a text that begins with it (Documentation/arch/x86/boot.rst)."""
    try:
        with machine.at(path).open("rb") as file:
            head = file.read(0x20000)
    except OSError:
        return ""
    if head[0x202:0x206] != b"HdrS":
        return ""
    start = 0x200 + int.from_bytes(head[0x20E:0x210], "little")
    return head[start:].partition(b"\0")[0].partition(b" ")[0].decode("latin-1")


def set_original_aside() -> None:
    """Set the record of the original kernel aside if it cannot be read. Raises OSError."""
    path = machine.at(ORIGINAL)
    if path.exists() and known_original() is None:
        set_aside.keep(path, None)


def kernel_restored(steps: Steps, *, keep: bool) -> None:
    """Strike the changes of kernels once the original kernel runs again. With `keep` another
    kernel of the machine's own is accepted, too: its admin has replaced the original. Raises
    RefusedError if any other kernel runs."""
    changed = [entry for entry in steps.journal.entries if entry.kind == "kernel"]
    if not changed:
        return
    known = known_original() or {"version": machine.version(), **changed[0].what}
    running = {"release": machine.release(), "version": machine.version()}
    is_another = any(known[name] != running[name] for name in running)
    if machine.is_under_test() or (is_another and not keep):
        raise RefusedError(
            "wrong-kernel",
            f"the machine runs {running['release']} {running['version']}"
            f" with the command line {machine.cmdline()}, and not its own"
            f" {known['release']} {known['version']}",
        )
    for entry in changed:
        steps.journal.strike(entry)


def boot(steps: Steps, lease: leases.Lease, request: dict[str, Any]) -> dict[str, Any]:
    """Make the machine boot in a moment: `how` is kexec, grub, systemd-boot, or reboot for its
    default kernel. The lease is extended across the boot. `notes` in the answer says what the boot
    has to do without. Raises RefusedError while the machine is still up."""
    how = request["how"]
    stale = steps.put_back(lambda entry: entry.kind in BOOT_KINDS)["failed"]
    if stale:  # this entry would boot the kernel of that earlier boot
        raise RefusedError("boot-entry", f"an earlier boot's entry stays: {stale[0]['why']}")
    if how == "reboot":
        hard = "echo b > {sysrq}"
    else:
        if not any(entry.kind == "kernel" for entry in steps.journal.entries):
            raise RefusedError("no-original", "the machine's own kernel was not recorded")
        images = request["kernel"], request["initrd"], request["cmdline"]
        for path in ("kernel", "initrd"):
            if request[path]:
                machine.check_sha256(request[path], request[f"{path}_sha256"])
        name = f"barometer-{steps.token}"
        if how == "kexec":
            steps.take("kexec", kernel=images[0], initrd=images[1], cmdline=images[2])
        elif how == "grub":
            _stage_grub(steps, name, *images)
        elif how == "systemd-boot":
            names = ("kernel", "kernel_sha256", "initrd", "initrd_sha256", "cmdline")
            steps.take("loader-entry", name=name, **{key: request[key] for key in names})
            steps.take("loader-oneshot", entry=f"{name}.conf")
        else:
            raise RefusedError("bad-request", f"there is no way to boot called {how}")
        hard = "kexec -e" if how == "kexec" else "echo b > {sysrq}"
    lease.extend(request["extend"])
    notes = []
    if device := request.get("watchdog"):
        try:
            steps.take("watchdog", device=device, seconds=request["watchdog_seconds"])
        except (RefusedError, OSError) as exc:
            notes.append(f"no watchdog: {exc}")
    script = _script("kexec" if how == "kexec" else "reboot", hard)
    steps.take(
        "leaving", script=script, unit=f"barometer-boot-{steps.token}.service",
        boot_token=machine.token_in(request.get("cmdline", "")),
    )  # fmt: skip
    return {"boot_id": machine.boot_id(), "notes": notes}


def _stage_grub(steps: Steps, name: str, kernel: str, initrd: str, cmdline: str) -> None:
    loader = means.grub()
    if not loader.usable:
        raise RefusedError("grub", loader.why)
    if not machine.at("/sys/module/dm_mod").exists():
        with contextlib.suppress(RefusedError):  # grub-probe opens /dev/mapper, which loads it
            steps.take("modules", names=["dm_mod"])
    path = f"{loader.folder}/custom.cfg"
    before = machine.at(path).read_bytes() if machine.at(path).is_file() else b""
    entry = entries.grub_entry(loader.prefix, name, kernel, initrd, cmdline)
    content = before + entry.encode()
    steps.take(
        "grub-entry", path=path, content_base64=base64.b64encode(content).decode(), mode=0o600
    )
    steps.take("grub-next", entry=name, prefix=loader.prefix, folder=loader.folder)


def _script(verb: str, hard: str) -> str:
    """Return the shell script that takes the machine down.

    With systemd, services are stopped, guests shut down and file systems unmounted first: it is
    somebody's machine. If that hangs, or without systemd, the file systems are only flushed, as
    far as they can be, and made read-only."""
    sysrq = shlex.quote(str(machine.at("/proc/sysrq-trigger")))
    clean = (
        f"systemctl -i --no-block {verb} && sleep {leaving.CLEAN_SECONDS}; "
        if machine.has_systemd()
        else ""
    )
    # timeout(1) would wait for a sync that hangs in the kernel
    flush = f"sleep {_SYNC_SECONDS} & nap=$!; (sync; kill $nap) & wait $nap; "
    return (
        f"sleep 1; {clean}{flush}[ ! -e {sysrq} ] || {{ echo s > {sysrq}; echo u > {sysrq};"
        f" sleep 1; }}; {hard.format(sysrq=sysrq)}"
    )
