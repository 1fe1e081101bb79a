#!/bin/sh
# Sets the address that QEMU's user network forwards to.
for nic in /sys/class/net/*; do
    [ -e "$nic/device" ] || continue
    busybox ip addr add 10.0.2.15/24 dev "${nic##*/}"
    busybox ip link set "${nic##*/}" up
done
