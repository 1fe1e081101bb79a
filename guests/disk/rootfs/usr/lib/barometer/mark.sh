#!/bin/sh
# The boot mark on the console: basic.target is reached, the system can start its services.
read -r uptime _ < /proc/uptime
echo "barometer: boot mark, uptime $uptime" > /dev/console
echo "$uptime" > /run/boot-mark-uptime
