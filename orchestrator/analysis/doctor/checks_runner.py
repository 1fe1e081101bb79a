"""Can this machine run VMs, and hosts under test as VMs? Findings, from evidence alone."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.doctor.abilities import ExaminedMachine, parse_version
from orchestrator.analysis.doctor.finding import BOTH, METAL, NESTED, Finding, Needs
from orchestrator.evidence.surveys.checkup_facts import NOT_EXAMINED
from orchestrator.formats.abi import OVMF_CODE, OVMF_VARIABLES
from orchestrator.formats.units import GIB, format_size

QEMU = ("qemu-system-x86_64", "qemu-kvm")
DAEMONS = ("virtqemud", "libvirtd")
PROGRAMS = {
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "depmod": "kmod", "modinfo": "kmod",
    "ssh": "openssh-client", "apt-get": "apt", "dpkg-deb": "dpkg", "tar": "tar", "xz": "xz-utils",
}  # fmt: skip
"""Programs that a runner of nested hosts needs, and their packages; ci/setup.sh installs them."""
FOR_USERS = {"newuidmap": "uidmap", "unshare": "util-linux"}
FOR_BUILDS = {"git": "git"}
_QEMU_LEAST, _LIBVIRT_LEAST = (10,), (11,)
"""Least versions to make nested hosts with (machine types, intel-iommu, ivshmem): ci/setup.sh."""
_ALIGNS = (9, 2)
_EMULATOR_MEMORY = 2 * GIB
"""QEMU's own memory, above the host's: its translation buffer is 1 GiB."""
_NESTED_DISK, _METAL_DISK = 4 * GIB, 2 * GIB
"""Space that a first run needs: in the cache for images and kernels; on a metal host for two
staged kernels with their modules."""
_LEAST_DISK = GIB // 2


def check_kvm(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on KVM. The evidence is that a guest ran, or why it did not. If the guest
    does not answer, it may be slow, or /dev/kvm may open and run nothing."""
    why, silent = machine.facts.kvm, machine.facts.kvm_silent
    vendor = "svm" if machine.flags & {"svm"} else "vmx"
    flags = ", ".join(sorted(machine.flags & {"vmx", "svm"})) or "neither vmx nor svm"
    evidence = (
        f"/proc/cpuinfo: {flags}",
        f"/dev/kvm: {'there' if machine.present('/dev/kvm') else 'no such file'}",
    )
    matters = "metal" in needs.uses and needs.boots_guest
    if why is NOT_EXAMINED:
        if silent is not None:
            yield Finding(
                "kvm-unanswered", "warning" if matters or needs.accel == "kvm" else "note",
                f"it is not known if KVM runs a guest: no answer within {silent:g} s",
                evidence, "none if the machine is only slow; otherwise see dmesg | grep -i kvm",
                needs.uses,
            )  # fmt: skip
        return
    if why is None:
        yield Finding("kvm", "ok", "KVM runs a guest", evidence, uses=BOTH)
        return
    if not machine.flags & {"vmx", "svm"}:
        fix = (
            "this is a VM: turn on nested virtualisation for it where it runs"
            if machine.is_guest
            else "turn on VT-x or AMD-V in the firmware's setup"
        )
    elif not machine.present("/dev/kvm"):
        fix = f"modprobe {'kvm_amd' if vendor == 'svm' else 'kvm_intel'}"
    elif not machine.access("/dev/kvm"):
        fix = f"as root: usermod -aG kvm {machine.facts.user}, and log in again"
    else:
        fix = "see dmesg | grep -i kvm"
    if needs.accel == "kvm":
        yield Finding("kvm", "problem", f'host.accel = "kvm", but there is no KVM: {why}',
                      evidence, f'{fix}; or host.accel = "auto"', NESTED)  # fmt: skip
        return
    yield Finding(
        "kvm", "warning" if matters else "note",
        f"no KVM: {why}; "
        + ("guests are emulated, and so are their boot times" if "nested" not in needs.uses
           else "all is emulated: counts and accel exact are as good as ever, times are not"),
        evidence, fix, needs.uses,
    )  # fmt: skip


def check_nested_virtualisation(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    """Yield a finding on KVM within a nested host that itself runs under KVM: its guests are
    guests in a guest."""
    if not machine.has_kvm:
        return
    for module in ("kvm_intel", "kvm_amd"):
        path = f"/sys/module/{module}/parameters/nested"
        if (value := machine.file(path)) is None:
            continue
        if value in ("Y", "1"):
            yield Finding("nested-virtualisation", "ok", f"{module} gives guests KVM of their own",
                          (machine.quote(path),), uses=NESTED)  # fmt: skip
        else:
            yield Finding(
                "nested-virtualisation", "warning",
                "a nested host has no KVM: its guests are emulated within it",
                (machine.quote(path),),
                f"echo options {module} nested=1 > /etc/modprobe.d/nested.conf;"
                f" modprobe -r {module}; modprobe {module}",
                NESTED,
            )  # fmt: skip


def check_qemu(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    if needs.uses == METAL and not needs.boots_guest:
        return
    path, version = machine.program(*QEMU), machine.version(*QEMU)
    if path is None:
        yield Finding(
            "qemu", "problem", "there is no QEMU for x86-64",
            (f"{', '.join(QEMU)}: not in PATH, /usr/sbin, /usr/libexec",),
            "apt-get install qemu-system-x86, or the distribution's package", BOTH,
        )  # fmt: skip
        return
    if version is None:
        yield Finding("qemu", "warning", f"{path} does not say its version",
                      (f"{path} --version",), f"try {path} --version", BOTH)  # fmt: skip
        return
    numbers, line = version
    shown, evidence = ".".join(map(str, numbers)), (f"{path} --version: {line}",)
    if "nested" in needs.uses and numbers < _QEMU_LEAST:
        yield Finding("qemu", "problem", f"QEMU {shown} is too old to make nested hosts with",
                      evidence, "install QEMU 10 or later; Debian 12 has it in bookworm-backports",
                      NESTED)  # fmt: skip
    if numbers >= _ALIGNS:
        yield Finding("qemu", "ok", f"QEMU {shown}, which aligns the mappings of BARs", evidence,
                      uses=BOTH)  # fmt: skip
    else:
        # vfio_region_mmap() of hw/vfio/region.c; 9.2
        yield Finding(
            "qemu-alignment", "warning",
            f"QEMU {shown} does not align the mappings of BARs: guests get 4 KiB or 2 MiB leaves",
            evidence, "use QEMU 9.2 or later, or compare with the workload map",
        )  # fmt: skip


def check_firmware(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on OVMF. A nested host's image contains it; only metal hosts are checked."""
    if needs.firmware != "ovmf":
        return
    lost = [path for path in (OVMF_CODE, OVMF_VARIABLES) if not machine.present(path)]
    if lost:
        yield Finding(
            "firmware", "problem", f'guest.firmware = "ovmf", but there is no {lost[0]}',
            tuple(f"{path}: no such file" for path in lost),
            "apt-get install ovmf; on another distribution, link these paths to its raw images of"
            " 4 MiB",
        )  # fmt: skip
    else:
        yield Finding("firmware", "ok", "OVMF", (f"{OVMF_CODE}: there",))


def check_libvirt(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    if "nested" in needs.uses:
        version = "" if machine.facts.libvirt is NOT_EXAMINED else machine.facts.libvirt
        numbers = parse_version(version)
        status = "ok" if numbers >= _LIBVIRT_LEAST else "problem"
        text = f"libvirt {version}" if numbers else "libvirt's library cannot be loaded"
        yield Finding(
            "libvirt-library", "ok" if status == "ok" else "problem",
            text if status == "ok" else f"{text}; nested hosts need 11 or later",
            (f"libvirt.getVersion(): {version or 'none'}",),
            "" if status == "ok"
            else "apt-get install libvirt-daemon-driver-qemu, on Debian 12 from its backports",
            NESTED,
        )  # fmt: skip
    if "metal" not in needs.uses or not needs.boots_guest:
        return
    path, daemon = machine.program(*DAEMONS), machine.version(*DAEMONS)
    answers = [socket for socket, listens in machine.facts.sockets.items() if listens]
    shown = f" {'.'.join(map(str, daemon[0]))}" if daemon else ""
    if answers:
        yield Finding("libvirt", "ok", f"libvirt{shown} answers", (f"{answers[0]}: listens",))
    elif path is None:
        yield Finding("libvirt", "problem", "there is no libvirt daemon to start guests with",
                      (f"{', '.join(DAEMONS)}: not found",),
                      "apt-get install libvirt-daemon-system, or the distribution's")  # fmt: skip
    else:
        yield Finding(
            "libvirt", "problem", f"libvirt{shown} is installed, but does not answer",
            tuple(f"{p}: nobody listens" for p in machine.facts.sockets),
            "systemctl enable --now virtqemud.socket, or libvirtd.socket",
        )  # fmt: skip


def check_programs(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on the programs of a runner of nested hosts."""
    for_user = {} if machine.is_root else FOR_USERS
    needed = PROGRAMS | for_user | (FOR_BUILDS if needs.builds else {})
    lost = [name for name in needed if machine.program(name) is None]
    if not lost:
        yield Finding("programs", "ok", "all programs that nested hosts need are installed",
                      uses=NESTED)  # fmt: skip
        return
    packages = " ".join(dict.fromkeys(needed[name] for name in lost))
    yield Finding("programs", "problem", f"programs are missing: {', '.join(lost)}",
                  tuple(f"{name}: not found" for name in lost),
                  f"apt-get install {packages}", NESTED)  # fmt: skip


def check_user_namespaces(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    """Yield a finding on building images. Without root they are built in a user namespace with a
    range of users (subuid(5))."""
    if machine.is_root:
        return
    user = machine.facts.user
    ids = (user, str(machine.facts.uid))
    for table in ("/etc/subuid", "/etc/subgid"):
        lines = (machine.file(table) or "").splitlines()
        if not any(line.split(":")[0] in ids for line in lines):
            yield Finding(
                "subuid", "problem", f"no image can be built: {table} has no range for {user}",
                (machine.quote(table),),
                "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 " + user,
                NESTED,
            )  # fmt: skip
            return
    for path in ("/proc/sys/user/max_user_namespaces",
                 "/proc/sys/kernel/unprivileged_userns_clone"):  # fmt: skip
        if machine.file(path) == "0":
            yield Finding("subuid", "problem", "no image can be built: user namespaces are off",
                          (machine.quote(path),),
                          f"as root: sysctl {path[10:].replace('/', '.')}="
                          + ("1" if path.endswith("clone") else "10000"), NESTED)  # fmt: skip
            return
    yield Finding("subuid", "ok", f"images can be built as {user}",
                  (machine.quote("/etc/subuid"),), uses=NESTED)  # fmt: skip


def check_shared_memory(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    """Yield a finding on /dev/shm. The device's BAR is a sparse file there, which may be larger
    than the file system."""
    if machine.access("/dev/shm"):
        yield Finding("shm", "ok", "/dev/shm can hold the device's memory", uses=NESTED)
    else:
        yield Finding("shm", "problem",
                      "/dev/shm, which holds the device's memory, is not writable",
                      ("access(2) of /dev/shm: refused",),
                      "mount -t tmpfs -o mode=1777 tmpfs /dev/shm", NESTED)  # fmt: skip


def check_memory(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    free = machine.memory_available
    if free is None:
        yield Finding("memory", "warning", "it is not known how much memory is available",
                      (machine.quote("/proc/meminfo"),), "see free -h", needs.uses)  # fmt: skip
        return
    evidence = (f"/proc/meminfo: MemAvailable {free // 1024} kB",)
    needed = {
        "nested": ("a nested host", needs.host_memory + _EMULATOR_MEMORY),
        "metal": ("a guest", needs.guest_memory + GIB // 2),
    }
    small = [use for use in needs.uses if free < needed[use][1]]
    for use in small:
        machine_name, size = needed[use]
        key = "host.memory" if use == "nested" else "guest.memory"
        yield Finding(
            "memory", "problem",
            f"{_gib(free)} of memory are available; {machine_name} needs {_gib(size)}, with"
            " QEMU's own",
            evidence, f"end what else uses it, or lower {key}", (use,),
        )  # fmt: skip
    if not small:
        yield Finding("memory", "ok", f"{_gib(free)} of memory are available", evidence,
                      uses=needs.uses)  # fmt: skip


def check_disk(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    for use, paths in machine.facts.folder_uses.items():
        if use not in needs.uses:
            continue
        enough = _NESTED_DISK if use == "nested" else _METAL_DISK
        for path in paths:
            if (place := machine.facts.folders.get(path)) is None:
                yield Finding("disk", "warning", f"it is not known how much is free for {path}",
                              (f"statvfs(3) of {path}: no answer",), "see df -h",
                              (use,))  # fmt: skip
                continue
            free = place.free
            evidence = (f"statvfs(3) of {place.at}: {_gib(free)} of {_gib(place.total)} free",)
            if free >= enough:
                yield Finding("disk", "ok", f"{_gib(free)} are free for {path}", evidence,
                              uses=(use,))  # fmt: skip
            else:
                yield Finding(
                    "disk", "problem" if free < _LEAST_DISK else "warning",
                    f"{_gib(free)} are free for {path}; a first run needs about {_gib(enough)}",
                    evidence,
                    "make room there, or set BAROMETER_CACHE to a folder on a larger disk"
                    if use == "nested" else "make room there",
                    (use,),
                )  # fmt: skip


def _gib(size: int) -> str:
    return format_size(size) if size % GIB == 0 and size else f"{size / GIB:.1f} GiB"
