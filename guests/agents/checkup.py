"""Print as JSON what a machine can do: raw evidence, from the machine itself. Changes nothing.

    checkup.py REQUEST          Plain Python 3 standard library; needs no root

The request, as JSON:
    symbols     {FUNCTION: MODULE}, "" for the kernel's core: functions to find by their names
    programs    [NAME, ...] to find; sbin and libexec folders are searched, too
    versions    [NAME, ...] of those programs to run with --version; the first line is reported
    folders     [PATH, ...] whose free bytes to report; for a folder that does not exist, those of
                the nearest folder above it
The answer:
    release, architecture, python, uid, user
    files       {PATH: TEXT} of the files in FILES that exist and may be read
    unreadable  {PATH: WHY} of files that exist and may not be read
    present     {PATH: whether it exists}
    access      {PATH: whether this user may read and write it}
    iommus      names of the IOMMUs that are on
    groups      {IOMMU GROUP: [PCI ADDRESS, ...]}
    interrupts  names of interrupt chips; those with IR- use interrupt remapping
    programs    {NAME: {"path", "version"} or null}
    symbols     {FUNCTION: where it was found, or null}
    unread      {PATH: WHY} of files that could not be read; a function that is null in symbols may
                be in one of them
    types       {"source", "members", "parameters"} from the kernel's type information (BTF):
                members of struct follow_pfnmap_args, parameters of vaddr_get_pfns; null if there
                is none, or no symbols were requested
    memlock     RLIMIT_MEMLOCK in bytes, -1 for no limit
    folders     {PATH: {"at", "free", "total"}}
    sockets     {PATH: whether somebody listens there}
The environment variable BAROMETER_ROOT is put before every path.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import json
import lzma
import os
import platform
import pwd
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = os.environ.get("BAROMETER_ROOT", "")
MOST = 1 << 16
"""Most bytes that are read of one file."""
PROGRAM_SECONDS = 3.0
FILES = (
    "/proc/meminfo", "/proc/cmdline", "/proc/self/mounts",
    "/proc/sys/user/max_user_namespaces", "/proc/sys/kernel/unprivileged_userns_clone",
    "/etc/subuid", "/etc/subgid",
    "/sys/kernel/security/lockdown", "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/hugepages/*/free_hugepages",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "/sys/devices/system/clocksource/clocksource0/available_clocksource",
    "/sys/devices/system/cpu/intel_pstate/no_turbo", "/sys/devices/system/cpu/cpufreq/boost",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
    "/sys/module/kvm_intel/parameters/nested", "/sys/module/kvm_amd/parameters/nested",
    "/sys/module/vfio_iommu_type1/parameters/*", "/sys/class/iommu/*/intel-iommu/cap",
)  # fmt: skip
PRESENT = (
    "/dev/kvm", "/sys/firmware/acpi/tables/DMAR", "/sys/firmware/acpi/tables/IVRS",
    "/var/lib/barometer", "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd",
)  # fmt: skip
ACCESS = ("/dev/kvm", "/dev/shm", "/sys/kernel/tracing/kprobe_events")
SOCKETS = ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")
SEARCHED = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin",
            "/usr/libexec", "/usr/lib/systemd")  # fmt: skip
TYPE1, MEMBERS_OF, PARAMETERS_OF = "vfio_iommu_type1", "follow_pfnmap_args", "vaddr_get_pfns"


def at(path: str) -> str:
    return ROOT + path


def user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


# files -----------------------------------------------------------------------------------------


def files() -> tuple[dict[str, str], dict[str, str]]:
    read, unreadable = {}, {}
    for pattern in FILES:
        for found in sorted(glob.glob(at(pattern))):
            path = found[len(ROOT) :]
            try:
                with open(found, errors="replace") as file:
                    read[path] = file.read(MOST)
            except OSError as exc:
                unreadable[path] = exc.strerror or type(exc).__name__
    with contextlib.suppress(OSError):
        read["/proc/cpuinfo"] = first_processor()
    return read, unreadable


def first_processor() -> str:
    """Return the first processor's part of /proc/cpuinfo. The other parts are the same, and to
    read one interrupts its processor."""
    lines = []
    with open(at("/proc/cpuinfo"), errors="replace") as file:
        for line in file:
            if not line.strip():
                break
            lines.append(line)
    return "".join(lines)


def groups() -> dict[str, list[str]]:
    folders = glob.glob(at("/sys/kernel/iommu_groups/*/devices"))
    return {Path(folder).parent.name: sorted(os.listdir(folder)) for folder in sorted(folders)}


def interrupts() -> list[str]:
    """Return the interrupt chips in /proc/interrupts. Those of a remapping unit begin with IR-
    (kernel/irq/proc.c shows irq_chip.name; drivers/iommu/intel/irq_remapping.c and
    drivers/iommu/amd/iommu.c name them)."""
    try:
        with open(at("/proc/interrupts"), errors="replace") as file:
            return sorted(set(re.findall(r"\b(?:[A-Z]+-)*(?:IO-APIC|MSIX?)\b", file.read())))
    except OSError:
        return []


def folder(path: str) -> dict[str, Any] | None:
    where = Path(at(path))
    while not where.exists() and where != where.parent:
        where = where.parent
    try:
        usage = shutil.disk_usage(where)
    except OSError:
        return None
    return {"at": str(where)[len(ROOT) :], "free": usage.free, "total": usage.total}


def listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(at(path))
        except OSError:
            return False
    return True


# programs --------------------------------------------------------------------------------------


def programs(names: list[str], versions: list[str]) -> dict[str, dict[str, str] | None]:
    places = [*os.environ.get("PATH", "").split(":"), *SEARCHED]
    searched = ":".join(at(place) for place in places if place)
    paths = {name: shutil.which(name, path=searched) for name in names}
    asked = {
        name: subprocess.Popen([path, "--version"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for name in versions if (path := paths.get(name))
    }  # fmt: skip
    said = {name: first_line(process) for name, process in asked.items()}
    return {
        name: {"path": path[len(ROOT) :], "version": said.get(name, "")} if path else None
        for name, path in paths.items()
    }


def first_line(process: subprocess.Popen[bytes]) -> str:
    with process:
        try:
            out = process.communicate(timeout=PROGRAM_SECONDS)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return ""
    return (out.decode(errors="replace").splitlines() or [""])[0]


# functions -------------------------------------------------------------------------------------


def symbols(wanted: dict[str, str]) -> tuple[dict[str, str | None], dict[str, str]]:
    """Return the place of each function, and what could not be read. If a module is not loaded,
    its file is searched."""
    found: dict[str, str | None] = dict.fromkeys(wanted)
    unread: dict[str, str] = {}
    names = "|".join(map(re.escape, sorted(wanted)))
    try:
        table = Path(at("/proc/kallsyms")).read_bytes()
    except OSError as exc:
        table, unread["/proc/kallsyms"] = b"", exc.strerror or ""
    pattern = rf"(?m)^[0-9a-f]+ [tTwW] ({names})(?:\t.*)?$"
    for match in re.finditer(pattern.encode(), table) if wanted else ():
        found[match[1].decode()] = "/proc/kallsyms"
    for module in sorted({m for name, m in wanted.items() if m and found[name] is None}):
        if loaded(module):
            continue
        if not os.path.exists(at(modules_dep())):
            unread[modules_dep()] = "no such file"
        if (path := module_path(module)) is None:
            continue
        if (content := module_content(path)) is None:
            missing = path.endswith(".zst") and shutil.which("zstd") is None
            unread[path] = "zstd is not installed here" if missing else "cannot be unpacked"
            continue
        there = functions(content)
        found.update({n: path for n, m in wanted.items() if m == module and n in there})
    return found, unread


def modules_dep() -> str:
    return f"/lib/modules/{platform.release()}/modules.dep"


def loaded(module: str) -> bool:
    return os.path.isdir(at(f"/sys/module/{module}"))


def module_path(name: str) -> str | None:
    """Return the module's path in modules.dep (depmod(8)); None if it is built in or missing."""
    try:
        text = Path(at(modules_dep())).read_text(errors="replace")
    except OSError:
        return None
    file_name = name.replace("_", "[-_]")
    match = re.search(rf"(?m)^((?:.*/)?{file_name}\.ko(?:\.\w+)?):", text)
    return f"{os.path.dirname(modules_dep())}/{match[1]}" if match else None


def module_content(path: str | None) -> bytes | None:
    """Return a module's ELF file; None if it cannot be read or unpacked."""
    if path is None:
        return None
    try:
        data = Path(at(path)).read_bytes()
        if path.endswith(".xz"):
            return lzma.decompress(data)
        if path.endswith(".gz"):
            return gzip.decompress(data)
        if path.endswith(".zst"):
            return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True,
                                  timeout=PROGRAM_SECONDS).stdout  # fmt: skip
    except (OSError, EOFError, lzma.LZMAError, subprocess.SubprocessError):
        return None
    return data


def sections(elf: bytes) -> dict[str, bytes]:
    """Return the sections of a 64-bit little-endian ELF file by name (elf(5)); none if the data is
    no such file."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return {}
    try:
        (table,) = struct.unpack_from("<Q", elf, 40)
        size, count, names = struct.unpack_from("<HHH", elf, 58)
        heads = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
        text = elf[heads[names][4] : heads[names][4] + heads[names][5]]
    except (struct.error, IndexError):
        return {}
    return {name_at(text, head[0]): elf[head[4] : head[4] + head[5]] for head in heads}


def functions(elf: bytes) -> set[str]:
    """Return the names of the functions that an ELF file defines: STT_FUNC with a section."""
    parts = sections(elf)
    table, text = parts.get(".symtab", b""), parts.get(".strtab", b"")
    whole = table[: len(table) // 24 * 24]
    return {
        name_at(text, name)
        for name, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", whole)
        if info & 15 == 2 and section
    }


def name_at(text: bytes, offset: int) -> str:
    end = text.find(b"\0", offset)
    return text[offset : end if end >= 0 else len(text)].decode(errors="replace")


# type information ------------------------------------------------------------------------------

PTR, STRUCT, TYPEDEF, CONST, FUNC, FUNC_PROTO = 2, 4, 8, 10, 12, 13
TAIL = {1: 1, 3: 3, 14: 1, 17: 1}
"""Kind -> number of 32-bit words after a type's first three: INT, ARRAY, VAR, DECL_TAG."""
TAIL_EACH = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}
"""Kind -> number of words for each of its vlen items: STRUCT, UNION, ENUM, FUNC_PROTO, DATASEC,
ENUM64."""


class Btf:
    """Types in the kernel's BPF type format (Documentation/bpf/btf.rst). The types of a module are
    split: their ids and name offsets continue those of `base`, the kernel's own types. Raises
    ValueError if the data is not BTF."""

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        try:
            magic, version, _, head, types, type_bytes, names, name_bytes = struct.unpack_from(
                "<HBBIIIII", data
            )
        except struct.error as exc:
            raise ValueError(f"BTF: {exc}") from exc
        end = head + max(types + type_bytes, names + name_bytes)
        if (magic, version) != (0xEB9F, 1) or end > len(data) or type_bytes % 4:
            raise ValueError("BTF: no header of version 1")
        self.base = base
        self.first_id: int = base.end_id if base else 1
        self.first_name: int = base.end_name if base else 0
        self.names = data[head + names : head + names + name_bytes]
        self.words = memoryview(data[head + types : head + types + type_bytes]).cast("I")
        self.starts: list[int] = []
        self.end_id: int = 0
        self.end_name: int = self.first_name + len(self.names)
        here, words, end = 0, self.words, len(self.words)
        while here + 3 <= end:
            self.starts.append(here)
            info = words[here + 1]
            kind = info >> 24 & 31
            here += 3 + TAIL.get(kind, 0) + TAIL_EACH.get(kind, 0) * (info & 0xFFFF)
        if here != end:
            raise ValueError("BTF: its types end within one")
        self.end_id = self.first_id + len(self.starts)

    def name(self, offset: int) -> str:
        if offset < self.first_name:
            return self.base.name(offset) if self.base else ""
        return name_at(self.names, offset - self.first_name)

    def type(self, number: int) -> tuple[int, int, str, memoryview]:
        """Return a type's kind, its id or size (one word holds either), its name, and the words
        that follow. Kind 0 is void, or there is no such type."""
        if self.base and number < self.first_id:
            return self.base.type(number)
        if not 0 <= number - self.first_id < len(self.starts):
            return 0, 0, "", self.words[:0]
        here = self.starts[number - self.first_id]
        info = self.words[here + 1]
        kind = info >> 24 & 31
        length = TAIL.get(kind, 0) + TAIL_EACH.get(kind, 0) * (info & 0xFFFF)
        tail = self.words[here + 3 : here + 3 + length]
        return kind, self.words[here + 2], self.name(self.words[here]), tail

    def find(self, kind: int, name: str) -> int | None:
        """Return the id of the first type of that kind and name. The types of the base are not
        searched."""
        offset = self.offset(name)
        for number, here in enumerate(self.starts, self.first_id) if offset is not None else ():
            if self.words[here] == offset and self.words[here + 1] >> 24 & 31 == kind:
                return number
        return None

    def offset(self, name: str) -> int | None:
        """Return the offset of a name. A name that the base has is not stored again."""
        if self.base and (there := self.base.offset(name)) is not None:
            return there
        # the names of split types begin without a NUL
        found = (b"\0" + self.names).find(b"\0" + name.encode() + b"\0")
        return None if found < 0 else self.first_name + found

    def members(self, struct_name: str) -> list[str] | None:
        number = self.find(STRUCT, struct_name)
        if number is None:
            return None
        tail = self.type(number)[3]
        return [self.name(tail[i]) for i in range(0, len(tail), 3)]

    def parameters(self, function: str) -> list[list[str]] | None:
        """Return [[name, type], ...] of a function; the type without pointers and qualifiers."""
        number = self.find(FUNC, function)
        if number is None:
            return None
        kind, _, _, tail = self.type(self.type(number)[1])
        if kind != FUNC_PROTO:
            return None
        return [[self.name(tail[i]), self.plain(tail[i + 1])] for i in range(0, len(tail), 2)]

    def plain(self, number: int) -> str:
        for _ in range(32):
            kind, other, name, _ = self.type(number)
            if kind not in (PTR, TYPEDEF, CONST, 9, 11):  # VOLATILE, RESTRICT
                return name or "void"
            number = other
        return "?"


def types() -> dict[str, Any] | None:
    """Return the types that the series of v6.15 changed: the members of one struct, and the
    parameters of one function. None if the kernel has no BTF."""
    path = "/sys/kernel/btf/vmlinux"
    try:
        core = Btf(Path(at(path)).read_bytes())
    except (OSError, ValueError):
        return None
    source, parameters = [path], core.parameters(PARAMETERS_OF)
    if parameters is None:
        place, module = module_types(core)
        if module is not None:
            source.append(place)
            parameters = module.parameters(PARAMETERS_OF)
    return {"source": source, "members": core.members(MEMBERS_OF), "parameters": parameters}


def module_types(core: Btf) -> tuple[str, Btf | None]:
    """Return the path and the types of the module: from the loaded module, else from its file,
    which may contain a base of its own. The types are None if neither has any."""
    path = f"/sys/kernel/btf/{TYPE1}"
    try:
        if os.path.exists(at(path)):
            return path, Btf(Path(at(path)).read_bytes(), core)
        path = module_path(TYPE1) or ""
        parts = sections(module_content(path or None) or b"")
        base = Btf(parts[".BTF.base"]) if ".BTF.base" in parts else core
        return path, Btf(parts[".BTF"], base) if ".BTF" in parts else None
    except (OSError, ValueError):
        return path, None


# -----------------------------------------------------------------------------------------------


def checkup(request: dict[str, Any]) -> dict[str, Any]:
    read, unreadable = files()
    found, unread = symbols(request.get("symbols", {}))
    return {
        "schema": 1, "release": platform.release(), "architecture": platform.machine(),
        "python": platform.python_version(), "uid": os.geteuid(), "user": user(),
        "files": read, "unreadable": unreadable,
        "present": {path: os.path.exists(at(path)) for path in PRESENT},
        "access": {path: os.access(at(path), os.R_OK | os.W_OK) for path in ACCESS},
        "iommus": sorted(map(os.path.basename, glob.glob(at("/sys/class/iommu/*")))),
        "groups": groups(), "interrupts": interrupts(),
        "programs": programs(request.get("programs", []), request.get("versions", [])),
        "symbols": found, "unread": unread, "types": types() if request.get("symbols") else None,
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "folders": {path: folder(path) for path in request.get("folders", [])},
        "sockets": {path: listens(path) for path in SOCKETS},
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(checkup(json.loads(sys.argv[1]))))
