#!/bin/sh
# What a host says around a profiled boot, as sections that orchestrator/evidence/surveys/host_report.py
# reads. Functions for a POSIX shell that runs as root; they change nothing, and wake no device.
#
#   report_host DEVICE...         before the boot: the host, and devices (0000:3b:00.0)
#   report_after PID ENDED [LOG]  after it: QEMU's process if it is there, the kernel's log, and
#                                 the last start in libvirt's LOG of the domain
#   list_devices                  devices that may be a guest's: bound to vfio-pci, or with a large
#                                 BAR
#   find_qemu NAME OLD...         the process id of a QEMU that has VFIO open, none of OLD, and
#                                 whose command line matches the pattern NAME
#   list_qemus                    the process ids of all of them
#   find_failed TRACE             the process id of a QEMU that ended after a map was refused
#   count_refused                 how often the kernel's log says that a device was refused as a
#                                 whole: such a QEMU ends before its first map
PROC=${PROC:-/proc}
SYS=${SYS:-/sys}

section() { printf '\n==== barometer %s\n' "$1"; }

show() { # NAME FILE
    [ -r "$2" ] || return 0
    section "$1"
    cat "$2" 2> /dev/null
}

report_log() {
    command -v dmesg > /dev/null || return 0
    section dmesg
    dmesg 2> /dev/null |
        grep -iE 'vfio|iommu|dmar|amd-vi|ivrs|reserve|ready [0-9]+ms|D3|1:1 |memlock|killed process|BAR [0-9]|framebuffer|nvidia|clocksource' |
        tail -n 400
}

list_devices() {
    for at in "$SYS"/bus/pci/devices/*; do
        driver=$(readlink "$at/driver")
        lines=0 large=
        while read -r first last flags && [ $lines -lt 6 ]; do
            lines=$((lines + 1))
            [ $((flags & 0x200)) -eq 0 ] || [ $((last - first)) -lt 67108863 ] || large=1
        done 2> /dev/null < "$at/resource"
        case ${driver##*/}$large in vfio-pci* | *1) echo "${at##*/}" ;; esac
    done
}

report_device() { # ADDRESS
    at=$SYS/bus/pci/devices/$1
    [ -d "$at" ] || return 0
    for name in vendor device class resource power_state reset_method boot_vga d3cold_allowed; do
        show "device/$1/$name" "$at/$name"
    done
    driver=$(readlink "$at/driver")
    [ -z "$driver" ] || {
        section "device/$1/driver"
        echo "${driver##*/}"
    }
    show "device/$1/reserved_regions" "$at/iommu_group/reserved_regions"
    # reading the configuration space wakes a device that sleeps (pci_read_config())
    [ "$(cat "$at/power/runtime_status" 2> /dev/null)" = suspended ] || {
        section "device/$1/config"
        od -An -tx1 -N4 "$at/config" 2> /dev/null
    }
}

report_host() { # DEVICE...
    show release "$PROC/sys/kernel/osrelease"
    show cmdline "$PROC/cmdline"
    show transparent_hugepage "$SYS/kernel/mm/transparent_hugepage/enabled"
    show clocksource "$SYS/devices/system/clocksource/clocksource0/current_clocksource"
    for name in disable_hugepages dma_entry_limit allow_unsafe_interrupts; do
        show "type1/$name" "$SYS/module/vfio_iommu_type1/parameters/$name"
    done
    section cpuinfo
    sed '/^$/q' "$PROC/cpuinfo"
    section iommu
    ls "$SYS/class/iommu" 2> /dev/null
    section iommu-cap
    cat "$SYS"/class/iommu/*/intel-iommu/cap 2> /dev/null
    show lockdown "$SYS/kernel/security/lockdown"
    section interrupts
    grep -oE ' IR-[A-Za-z-]+' "$PROC/interrupts" 2> /dev/null | sort -u
    section meminfo
    grep -E '^(MemTotal|MemAvailable|Huge|DirectMap)' "$PROC/meminfo"
    show iomem "$PROC/iomem"
    for address in "$@"; do report_device "$address"; done
    report_log
}

list_qemus() {
    for at in "$PROC"/[0-9]*; do
        read -r comm 2> /dev/null < "$at/comm" || continue
        case $comm in *qemu* | kvm | CPU* | cloud-hyperviso*) ;; *) continue ;; esac
        # shellcheck disable=SC2010,SC2012 # the targets of the links are wanted
        ls -l "$at/fd" 2> /dev/null | grep -q '/dev/vfio\|anon_inode:.*vfio' && echo "${at##*/}"
    done
}

find_qemu() { # NAME OLD...
    pattern=$1
    shift
    for pid in $(list_qemus); do
        case " $* " in *" $pid "*) continue ;; esac
        # shellcheck disable=SC2254 # the name is a pattern
        case $(tr '\0' ' ' 2> /dev/null < "$PROC/$pid/cmdline") in
            *$pattern*) echo "$pid" && return ;;
        esac
    done
}

find_failed() { # TRACE
    # a map's return: `NAME-PID [CPU] ..... TIME: ioctl_out: (...) cmd=0x3b71 ... ret=-28`
    sed -n 's/^.*-\([0-9]*\) *\[.*ioctl_out: .* ret=-[1-9][0-9]*$/\1/p' "$1" | sort -un |
        while read -r pid; do
            [ -d "$PROC/$pid" ] || { echo "$pid" && break; }
        done
}

count_refused() {
    # vfio_iommu_type1_attach_group(), intel_iommu_attach_device(), __iommu_device_set_domain()
    dmesg 2> /dev/null | grep -cE 'No interrupt remapping support|platform RMRR requirement|1:1 IOMMU mapping'
}

list_own_devices() { # PID
    # shellcheck disable=SC2012
    ls -l "$PROC/$1/fd" 2> /dev/null | sed -n 's,.*-> /dev/vfio/,,p' | sort -u |
        while read -r node; do
            case $node in
                devices/*) readlink -f "$SYS/class/vfio-dev/${node#devices/}/device" | sed 's,.*/,,' ;;
                [0-9]*) ls "$SYS/kernel/iommu_groups/$node/devices" 2> /dev/null ;;
            esac
        done
}

report_after() { # PID ENDED [LOG]
    section pid
    echo "$1"
    section ended
    echo "$2"
    [ -z "$1" ] || [ ! -d "$PROC/$1" ] || {
        section cmdline
        tr '\0' '\n' < "$PROC/$1/cmdline"
        section version
        # read, never run: it may be a container's program, and this is root
        grep -aoE 'QEMU emulator version [0-9]+([.][0-9]+)+' "$PROC/$1/exe" 2> /dev/null | head -n 1
        show limits "$PROC/$1/limits"
        section devices
        list_own_devices "$1"
        section process
        grep VmPTE "$PROC/$1/status"
        # shellcheck disable=SC2012
        echo "task $(ls "$PROC/$1/task" | tr '\n' ' ')"
        grep vfio "$PROC/$1/maps"
    }
    [ -z "${3-}" ] || [ ! -r "$3" ] || {
        section qemu-log
        # each start begins with its time and these words (qemuProcessLaunch())
        # shellcheck disable=SC2016 # $ is the last line
        tail -n 200 "$3" | sed -n '/: starting up/h; /: starting up/!H; ${x;p;}'
    }
    report_log
}
