"""Make the machine boot a certain kernel once: load it for kexec, or add an entry to GRUB."""

from __future__ import annotations

from typing import Any

from keeper import leftovers, machine, means
from keeper.machine import RefusedError

GRUB_NEXT = "next_entry"


def plan_kexec(kernel: str, initrd: str, cmdline: str) -> dict[str, Any]:
    if (machine.text("/sys/kernel/kexec_loaded") or "0") != "0":
        raise RefusedError(
            "kexec", "a kernel is loaded for kexec already, and not by barometer"
            " (/sys/kernel/kexec_loaded); `kexec -u` unloads it",
        )  # fmt: skip
    return {"kernel": kernel, "initrd": initrd, "cmdline": cmdline}


def load_kexec(what: dict[str, Any]) -> None:
    """Load the kernel with kexec_file_load(2), or with kexec_load(2) if the running kernel lacks
    or forbids that."""
    words = ["-l", str(machine.at(what["kernel"])), f"--command-line={what['cmdline']}"]
    if what["initrd"]:
        words.append(f"--initrd={machine.at(what['initrd'])}")
    try:
        machine.run("kexec", "-s", *words)
    except RefusedError as exc:
        try:
            machine.run("kexec", "-c", *words)
        except RefusedError as other:
            raise RefusedError("kexec", f"{exc}; {other}") from other


def unload_kexec(what: dict[str, Any]) -> str:
    if machine.text("/sys/kernel/kexec_loaded") == "1":
        machine.run("kexec", "-u")
    return f"kexec: {what['kernel']} is not loaded"


def grub_entry(prefix: str, name: str, kernel: str, initrd: str, cmdline: str) -> str:
    """Return a menu entry for GRUB. The entry finds the disk of the kernel and the initramfs in
    the same way as an entry that grub-mkconfig makes.

    If GRUB cannot load one of them, it normally waits for a key in its menu. This entry restarts
    the machine instead, so that GRUB boots the default entry."""

    def probed(target: str) -> list[str]:
        """Return the words that grub-probe prints about the disk of the kernel."""
        return machine.run(
            f"{prefix}-probe", f"--target={target}", str(machine.at(kernel))
        ).split()

    def relative(path: str) -> str:
        return _quoted(machine.run(f"{prefix}-mkrelpath", str(machine.at(path))).strip())

    modules = [*probed("abstraction"), *(f"part_{table}" for table in probed("partmap"))]
    lines = [f"insmod {module}" for module in (*modules, *probed("fs"))]
    lines.append(f"search --no-floppy --fs-uuid --set=root {' '.join(probed('fs_uuid'))}")
    start = ["boot"]
    if initrd:
        start = _when(f"initrd {relative(initrd)}", start)
    words = " ".join(_quoted(_for_grub(word)) for word in split_cmdline(cmdline))
    lines += [*_when(f"linux {relative(kernel)} {words}", start), "reboot"]
    body = "".join(f"\t{line}\n" for line in lines)
    # --unrestricted: boot without the menu's password, because nobody is there to type it
    return f"menuentry 'barometer' --unrestricted --id {name} {{\n{body}}}\n"


def split_cmdline(cmdline: str) -> list[str]:
    """Return the words of a kernel's command line as the kernel reads them: space between double
    quotes splits nothing, and quotes around a word or its value are left out (next_arg() in
    lib/cmdline.c)."""
    words = []
    rest = cmdline.lstrip()
    while rest:
        is_quoted = in_quotes = rest[0] == '"'
        rest = rest[is_quoted:]
        end = 0
        while end < len(rest) and (in_quotes or not rest[end].isspace()):
            in_quotes ^= rest[end] == '"'
            end += 1
        word, rest = rest[:end], rest[end:].lstrip()
        name, equals, value = word.partition("=")
        if name and value[:1] == '"':
            value = value[1:]
            word = name + equals + (value[:-1] if value[-1:] == '"' else value)
        elif is_quoted and word[-1:] == '"':
            word = word[:-1]
        words += [word] * bool(word)
    return words


def _for_grub(word: str) -> str:
    """Return the word, which GRUB hands over in double quotes if it has a space. Raises
    RefusedError if GRUB would hand over another one: it puts a backslash before quotes and
    backslashes (grub_create_loader_cmdline() in grub-core/lib/cmdline.c), which the kernel
    keeps."""
    if any(c in "\"'\\" or (c.isspace() and c != " ") for c in word):
        raise RefusedError(
            "grub", f"GRUB cannot hand over {word!r} of the command line: of a word with quotes,"
            " backslashes or tabs it makes another one",
        )  # fmt: skip
    return word


def _when(command: str, then: list[str]) -> list[str]:
    """Return lines for GRUB's shell that run `then` only if the command succeeds."""
    return [f"if {command}; then", *(f"\t{line}" for line in then), "fi"]


def _quoted(word: str) -> str:
    """Quote a word for GRUB's shell: nothing is special between single quotes."""
    return "'" + word.replace("'", "'\\''") + "'"


def plan_grub_next(entry: str, prefix: str, folder: str) -> dict[str, Any]:
    """Plan the entry of the next boot. It applies once, because GRUB clears it when it boots."""
    return {"entry": entry, "prefix": prefix, "folder": folder,
            "former": means.grub_variable(folder, GRUB_NEXT)}  # fmt: skip


def set_grub_next(what: dict[str, Any]) -> None:
    machine.run(f"{what['prefix']}-reboot", what["entry"])
    if means.grub_variable(what["folder"], GRUB_NEXT) != what["entry"]:
        raise RefusedError(
            "grub", f"{what['folder']}/grubenv: {GRUB_NEXT} is not {what['entry']} after"
            f" {what['prefix']}-reboot",
        )  # fmt: skip


def unset_grub_next(what: dict[str, Any]) -> str:
    former, folder = what["former"], what["folder"]
    # GRUB leaves the variable there, but empty
    if means.grub_variable(folder, GRUB_NEXT) != former:
        words = ("unset", GRUB_NEXT) if former is None else ("set", f"{GRUB_NEXT}={former}")
        try:
            machine.run(f"{what['prefix']}-editenv", str(machine.at(f"{folder}/grubenv")), *words)
        except RefusedError:
            if former or not leftovers.remove_next(folder):
                raise
    return f"grub: {GRUB_NEXT} is {former or 'not set'}"
