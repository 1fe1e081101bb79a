# What a host says around a profiled boot, as sections that orchestrator/evidence/host_report.py
# reads. Functions for a POSIX shell that runs as root; they change nothing, and wake no device.
#
#   report_host DEVICE...   before the boot: the host, and the devices of the guest (0000:3b:00.0)
#   report_after [PID]      after it: QEMU's process if it is there, and the kernel's log

section() { printf '\n==== barometer %s\n' "$1"; }

show() { # NAME FILE
    [ -r "$2" ] || return 0
    section "$1"
    cat "$2" 2> /dev/null
}

report_log() {
    section dmesg
    dmesg 2> /dev/null | grep -iE 'vfio|iommu|dmar|amd-vi|ivrs|reserve|ready [0-9]+ms|D3|1:1 |memlock|pci[^ ]* [0-9a-f]{4}:|BAR [0-9]|fb[0-9]|framebuffer|nvidia' |
        tail -n 400
}

report_device() { # ADDRESS
    at=/sys/bus/pci/devices/$1
    [ -d "$at" ] || return 0
    for name in vendor device class resource power_state reset_method boot_vga d3cold_allowed; do
        show "device/$1/$name" "$at/$name"
    done
    driver=$(readlink "$at/driver")
    [ -z "$driver" ] || { section "device/$1/driver"; echo "${driver##*/}"; }
    show "device/$1/reserved_regions" "$at/iommu_group/reserved_regions"
    # reading the configuration space wakes a device that sleeps (pci_read_config())
    [ "$(cat "$at/power/runtime_status" 2> /dev/null)" = suspended ] || {
        section "device/$1/config"
        od -An -tx1 -N4 "$at/config" 2> /dev/null
    }
}

report_host() { # DEVICE...
    show release /proc/sys/kernel/osrelease
    show cmdline /proc/cmdline
    show transparent_hugepage /sys/kernel/mm/transparent_hugepage/enabled
    show clocksource /sys/devices/system/clocksource/clocksource0/current_clocksource
    for name in disable_hugepages dma_entry_limit allow_unsafe_interrupts; do
        show "type1/$name" "/sys/module/vfio_iommu_type1/parameters/$name"
    done
    section cpuinfo
    sed '/^$/q' /proc/cpuinfo
    section iommu
    ls /sys/class/iommu 2> /dev/null
    section iommu-cap
    cat /sys/class/iommu/*/intel-iommu/cap 2> /dev/null
    show lockdown /sys/kernel/security/lockdown
    section interrupts
    grep -oE ' IR-[A-Za-z-]+' /proc/interrupts 2> /dev/null | sort -u
    section meminfo
    grep -E '^(MemTotal|MemAvailable|Huge|DirectMap)' /proc/meminfo
    show iomem /proc/iomem
    for address in "$@"; do report_device "$address"; done
    report_log
}

report_after() { # [PID]
    [ -z "$1" ] || [ ! -d "/proc/$1" ] || {
        section cmdline
        tr '\0' '\n' < "/proc/$1/cmdline"
        show limits "/proc/$1/limits"
        section process
        grep VmPTE "/proc/$1/status"
        echo "task $(ls "/proc/$1/task" | tr '\n' ' ')"
        grep vfio "/proc/$1/maps"
    }
    report_log
}
