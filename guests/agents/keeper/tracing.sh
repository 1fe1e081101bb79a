# shellcheck shell=sh disable=SC2154,SC2317
# The one program that arms kernel probes in a tracefs instance of their own, and removes them. It
# needs nothing but a POSIX shell. orchestrator/machine/tracing/armer.py sends it with the calls
# that arm a specification; the keeper only removes. Before it stand these variables:
#   T  tracefs
#   P  /proc
#   I  the instance's folder
#   G  event group of the probes; nothing else may use it

undo() {
    if [ -d "$I" ]; then
        echo 0 > "$I/tracing_on"
        for trigger in "$I/events/$G"/*/trigger; do # a histogram holds its event
            [ -e "$trigger" ] || continue
            sed -n 's/^\([^#][^[]*\) \[.*/!\1/p' "$trigger" |
                while read -r line; do echo "$line" >> "$trigger"; done
        done
        echo 0 > "$I/events/enable"
        # these two are switched for the events of all instances together
        # (trace_event_enable_cmd_record() and _tgid_record() in kernel/trace/trace_events.c)
        for option in record-cmd record-tgid; do
            [ ! -e "$I/options/$option" ] || cat "$T/options/$option" > "$I/options/$option"
        done
    fi
    sed -n "s,^[^:]*:\\($G/[^ ]*\\) .*,-:\\1,p" "$T/kprobe_events" |
        while read -r line; do echo "$line" >> "$T/kprobe_events"; done
    tries=0 # last, so that all is gone when the instance is; a program that ends may still write to
    while [ -d "$I" ] && ! rmdir "$I" && [ $tries -lt 100 ]; do # the trace
        tries=$((tries + 1))
        sleep 0.1
    done
}
finish() {
    exec > /dev/null 2>&1 9>&-
    [ -z "$made" ] || undo
}
refuse() {
    echo "refused $1"
    tail -c 600 "$T/error_log"
    exit
}
look_up() { found=$(grep -oE " ($1)([[:space:]]|\$)" "$P/kallsyms" | tr -s '\t\n' ' '); }
has() { case "$found " in *" $1 "*) ;; *) refuse "this kernel has no function $1" ;; esac; }
put() { printf '%s\n' "$2" > "$1" || refuse "$1: $2"; }
probe() { # without its module if that is built in: the kernel would wait for the module
    module=
    [ -z "$1" ] || ! grep -q "^$1 " "$P/modules" || module="$1:"
    printf '%s\n' "$2 $module$3" >> "$T/kprobe_events" || refuse "$2 $module$3"
}
switch_on() {
    put "$I/events/$1/enable" 1
    case $(cat "$I/events/$1/enable") in 1*) ;; *) refuse "$1 is off after switching it on" ;; esac
}
# A new instance has the options of the machine's own trace, and those change the form of a line.
set_options() {
    for option in context-info=1 irq-info=1 record-cmd=1 markers=1 record-tgid=0 latency-format=0 \
        raw=0 hex=0 bin=0 fields=0 verbose=0 block=0 sym-addr=0 printk-msg-only=0 stacktrace=0 \
        userstacktrace=0; do
        file="$I/options/${option%=*}"
        [ -e "$file" ] || continue # an older kernel
        read -r now < "$file"
        [ "$now" = "${option#*=}" ] || put "$file" "${option#*=}"
        read -r now < "$file"
        [ "$now" = "${option#*=}" ] || refuse "$file stays $now"
    done
}
make_instance() {
    mkdir "$I" || refuse "$I cannot be made"
    made=1
    set_options
}
begin() {
    made=
    trap '' PIPE
    trap finish EXIT
    trap 'exit 1' HUP INT TERM
    [ -w "$T/kprobe_events" ] || refuse "$T/kprobe_events: no such file, or not to be written"
    [ ! -d "$I" ] || { echo busy; exit; }
    undo # probes without an instance are nobody's
}
count() { # by what the shell has built in: a process each time would be felt in the boot
    sum=0
    for stats in "$I"/per_cpu/*/stats; do
        read -r _ entries < "$stats"
        sum=$((sum + entries))
    done
    [ -d "$P/$1" ] || sum=gone
    echo "$sum"
}
guard() { # until the input ends
    exec 9> "$I/trace_marker" # also how a tracer that is alive is told from what one left
    put "$I/tracing_on" 1
    echo armed
    while read -r line; do
        case $line in
            'count '*) count "${line#count }" ;;
            *)
                printf 'barometer %s\n' "$line" >&9
                echo marked
                ;;
        esac
    done
}
refuse_alive() { # print the process that has the probes armed, and end
    for fd in "$P"/[0-9]*/fd/9; do
        [ "$(readlink "$fd")" = "$I/trace_marker" ] || continue
        fd=${fd%/fd/9}
        echo "${fd##*/}"
        exit
    done
}
