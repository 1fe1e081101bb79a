"""Print facts of this machine as JSON. Plain Python 3 standard library.

A fact is null if the machine has no file for it. Devices are in survey.py.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import time
from pathlib import Path

SETTINGS = {
    "transparent_hugepage": "/sys/kernel/mm/transparent_hugepage/enabled",
    "thp_defrag": "/sys/kernel/mm/transparent_hugepage/defrag",
    "thp_shmem": "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
    "clocksource": "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "cmdline": "/proc/cmdline",
    "boot_id": "/proc/sys/kernel/random/boot_id",
    "vfio_disable_hugepages": "/sys/module/vfio_iommu_type1/parameters/disable_hugepages",
    "vfio_iommu_type1_srcversion": "/sys/module/vfio_iommu_type1/srcversion",
    "tainted": "/proc/sys/kernel/tainted",
    "lockdown": "/sys/kernel/security/lockdown",
    "smt": "/sys/devices/system/cpu/smt/active",
    "no_turbo": "/sys/devices/system/cpu/intel_pstate/no_turbo",
    "boost": "/sys/devices/system/cpu/cpufreq/boost",
    "firmware_vendor": "/sys/class/dmi/id/bios_vendor",
    "firmware_version": "/sys/class/dmi/id/bios_version",
}

CLOCK_SECONDS = 15.0


def text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def await_clock() -> None:
    """Wait while the clock source is tsc-early, for 15 s at most.

    Linux keeps time by tsc-early until it has calibrated the TSC, a second or so after boot
    (tsc_refine_calibration_work(), arch/x86/kernel/tsc.c). A measurement that starts later runs
    with tsc."""
    end = time.monotonic() + CLOCK_SECONDS
    while text(SETTINGS["clocksource"]) == "tsc-early" and time.monotonic() < end:
        time.sleep(0.1)


def cpu() -> dict[str, str]:
    lines = (text("/proc/cpuinfo") or "").split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    wanted = ("vendor_id", "model name", "microcode", "address sizes")
    return {name: fields.get(name, "") for name in wanted} | {
        "pdpe1gb": str("pdpe1gb" in fields.get("flags", "").split())
    }


def governor() -> str | None:
    """Return the governor of all CPUs: one name, or several with spaces between them."""
    paths = glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    return " ".join(sorted({text(path) or "" for path in paths})) or None


def parameters() -> dict[str, str | None]:
    """Return the parameters of VFIO's modules and of IOMMU drivers: MODULE.NAME -> value."""
    names = ("vfio*", "*iommu*")
    paths = {path for name in names for path in glob.glob(f"/sys/module/{name}/parameters/*")}
    return {".".join(path.split("/")[3::2]): text(path) for path in sorted(paths)}


def vulnerabilities() -> dict[str, str | None]:
    """Return each vulnerability of the processor -> whether and how it is mitigated, in the
    kernel's words."""
    paths = sorted(glob.glob("/sys/devices/system/cpu/vulnerabilities/*"))
    return {Path(path).name: text(path) for path in paths}


def main() -> None:
    await_clock()
    meminfo = (text("/proc/meminfo") or "").splitlines()
    print(json.dumps({
        "release": platform.release(), "version": platform.version(),
        "settings": {name: text(path) for name, path in SETTINGS.items()},
        "governor": governor(), "parameters": parameters(), "vulnerabilities": vulnerabilities(),
        "cpu": cpu(), "cpus": os.cpu_count(), "memory": meminfo[0] if meminfo else "",
        "iommus": [Path(p).name for p in glob.glob("/sys/class/iommu/*")],
        "kvm": [name for name in ("kvm_amd", "kvm_intel") if Path(f"/sys/module/{name}").exists()],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
