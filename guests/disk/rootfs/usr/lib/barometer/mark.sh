#!/bin/sh
# Prints the boot mark on the console: basic.target is reached, the system can start its services.
read -r token < /etc/barometer/token
read -r uptime _ < /proc/uptime
# on a line of its own: systemd may have begun a line about a unit that is late
printf '\nbarometer: boot mark %s, uptime %s\n' "$token" "$uptime" > /dev/console
echo "$uptime" > /run/boot-mark-uptime
