"""The reasons of failures: the one table of their names, what each means and what to do.

The last line of a command that fails is `reason: NAME`; the manifest of a trial that fails or is
invalid has the name as `reason`. Names are a public contract: scripts and old evidence have them.
`ci/docs/reasons.py` writes the table in docs/ from this one. To whom a trial's failure is charged
is in `faults.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from orchestrator.base.ends import Ends

_INPUT, _BENCH, _JUDGE, _LEFT, _BUG, _INTERRUPT, _TRIAL = Ends
_MADE = _BENCH | _TRIAL

_AGAIN = "run it again with the same --out"
_REDO = "make the trial again"
_RESTORE = "restore it, or make the trial again"
_REPORT = "report it with the run"
_LISTED = "take a name that the message lists"
_NAMED = "see what the message names"
_QUOTED = "see its last lines in the message"
_HOST = "see the host's console"
_CALLS = "see the call trace on the host's console"
_GUEST = "see the guest's console"
_WHOLE = "build the whole kernel"
_SUDO = "log in as root, or allow sudo without password"
_LOGIN = "see whether a login there prints something"
_DOCTOR = "install it; `barometer doctor` names the package"
_BUSY = "see whether a machine is overloaded, and try again"
_FORMAT = "write it by `git format-patch`"


class Reason(StrEnum):
    """Short stable name of the reason of a failure."""

    ends: Ends
    meaning: str
    """What is wrong, as a clause."""
    remedy: str
    """What the user can do, as an imperative clause."""

    def __new__(cls, name: str, ends: Ends, meaning: str, remedy: str) -> Self:
        reason = str.__new__(cls, name)
        reason._value_ = name
        reason.ends, reason.meaning, reason.remedy = ends, meaning, remedy
        return reason

    # One row a reason; a formatter would make six lines of each.
    # fmt: off

    # the command line and the scenario
    COMMAND_LINE = "command-line", _INPUT, "an argument or an option is wrong", (
        "see `barometer COMMAND --help`")
    SCENARIO = "scenario", _INPUT, "the scenario is wrong, or options that stand for one", (
        "mend the key that is named")
    PATH = "path", _INPUT, "a file or folder cannot be used", (
        "check that it exists and may be read or written")
    NO_STEP_SUMMARY = "no-step-summary", _INPUT, "--github has no file to write to", "leave it out"
    NO_SUCH_CELL = "no-such-cell", _INPUT, "the scenario's matrix has no such cell", _LISTED
    NO_SUCH_METRIC = "no-such-metric", _INPUT, "the workload does not measure this metric", _LISTED
    NOTHING_DIFFERS = "nothing-differs", _INPUT, "both arms are the same", (
        "name a candidate, a series or a setting")
    POWERLESS = "powerless", _INPUT, "so few pairs can call nothing", "take more, or trials.until"
    SSH_CONFIG = "ssh-config", _INPUT | _TRIAL, (
        "the SSH configuration or the address cannot be used"), "mend it until `ssh HOST` works"
    BAD_URI = "bad-uri", _INPUT, "--connect names a libvirt that cannot be profiled", (
        "give qemu:///system or qemu+ssh://HOST/system")
    NO_DOMAIN = "no-domain", _INPUT | _TRIAL, "libvirt has no domain of this name", (
        "take a name of `virsh list --all`")
    DOMAIN_RUNNING = "domain-running", _INPUT, "the domain that is to be started runs already", (
        "shut it down, or give --reboot")
    DOMAIN_NOT_RUNNING = "domain-not-running", _INPUT, (
        "the domain that is to reboot does not run"), "leave --reboot out"
    NO_HOSTDEV = "no-hostdev", _INPUT, "the domain owns no PCI device of its host", (
        "profile a domain that does")
    NO_AGENT = "no-agent", _INPUT, "the domain has no guest agent", "give --until SECONDS"
    # runs and their folders
    RUN_EXISTS = "run-exists", _INPUT | _TRIAL, "--out holds something else", "give another --out"
    RUN_CHANGED = "run-changed", _INPUT, "the folder's run was begun with other arguments", (
        "repeat those, or give another --out")
    OUT_UNWRITABLE = "out-unwritable", _INPUT, "--out cannot be written", "give another --out"
    NO_LOCKS = "no-locks", _BENCH, "the file system of --out has no locks", "give another --out"
    NOT_A_RUN = "not-a-run", _INPUT, "the folder is no run's, or that of a matrix", (
        "give the folder that a run printed, or one of its cells/NAME")
    NOT_A_TRIAL = "not-a-trial", _INPUT, "the folder of a run is given in place of a trial's", (
        "name one of its trials/NAME")
    ONE_RUN = "one-run", _INPUT, "`compare` has fewer than two runs", "name two different runs"
    NO_CONDITION = "no-condition", _INPUT, "--allow names no condition of a run", _LISTED
    NOTHING_TO_BISECT = "nothing-to-bisect", _INPUT | _JUDGE, (
        "good and bad do not differ, or no commit is between them"), (
        "take other commits, or another metric")
    NO_ANCESTOR = "no-ancestor", _INPUT, "--good is no ancestor of --bad", (
        "name commits on one line of history")
    NOT_MEASURED = "not-measured", _BENCH | _JUDGE, "no trial has the metric", "see its report"
    BUNDLE = "bundle", _INPUT, "a bundle cannot be made, or not be used here", _NAMED
    CELL_FAILED = "cell-failed", _BENCH, "the bench kept failing in a cell of a matrix", (
        "see the report of the cell, then run it again with the same --out")
    # the history
    HISTORY_NEWER = "history-newer", _BENCH, "the history was written by a newer barometer", (
        "update barometer, or name another store")
    HISTORY_DAMAGED = "history-damaged", _BENCH, "the history is damaged", (
        "move it away; `barometer history add RUN...` fills a new one")
    HISTORY_FOREIGN = "history-foreign", _BENCH, (
        "the database of the history holds something else"), "name another file or database"
    HISTORY_UNREACHABLE = "history-unreachable", _BENCH, (
        "the database of the history does not answer"), (
        "mend what the message names, then `barometer history add RUN...`")
    NIGHT_AT_WORK = "night-at-work", _BENCH, "another night of the scenario is at work", (
        "wait for it")
    NIGHT_KILLED = "night-killed", _BENCH, "the run of a night was killed", (
        "see who ends processes on the runner")
    NO_HISTORY = "no-history", _INPUT, "no history is named", (
        "set BAROMETER_HISTORY, or give --store")
    # kernels: names, packages, sources
    KERNEL_SPELLING = "kernel-spelling", _INPUT, (
        "a kernel is not spelled as any kind of kernel is"), "see `barometer ab --help`"
    NO_SUCH_SUITE = "no-such-suite", _INPUT, "the mirror lacks a suite", (
        "check its name, and BAROMETER_MIRROR")
    NO_SUCH_PACKAGE = "no-such-package", _INPUT | _BENCH | _TRIAL, "the mirror lacks a package", (
        "check its name and its suite")
    NO_SUCH_VERSION = "no-such-version", _INPUT, "the mirror lacks a version of a package", (
        "take one that the message lists")
    NO_SUCH_SOURCE = "no-such-source", _INPUT, "there is no such kernel source", (
        "name a repository, a folder, a tarball or a package")
    NO_SUCH_KERNEL = "no-such-kernel", _INPUT, "a folder does not have exactly one kernel image", (
        "put it there as vmlinuz or bzImage")
    NOT_A_KERNEL = "not-a-kernel", _INPUT, "a file is no x86 kernel image", (
        "name arch/x86/boot/bzImage, or vmlinuz of a package")
    KERNEL_MODULES_MISSING = "kernel-modules-missing", _INPUT, "a kernel's folder lacks modules", (
        "give `make modules_install` INSTALL_MOD_PATH=FOLDER")
    KERNEL_LACKS_MODULE = "kernel-lacks-module", _INPUT | _TRIAL, (
        "the scenario needs a module that the kernel lacks"), (
        "take another, or add its option with `config`")
    KERNEL_LACKS_OPTION = "kernel-lacks-option", _INPUT | _TRIAL, (
        "the machine needs an option that the kernel lacks"), "add it with `config`"
    NO_SUCH_PARAMETER = "no-such-parameter", _INPUT, (
        "the kernel has no such module or parameter"), "take a name that `modinfo` lists"
    PACKAGE_LAYOUT = "package-layout", _BENCH, (
        "a package has no kernel, or several, or lacks a module"), "take another package"
    MIRROR_UNREACHABLE = "mirror-unreachable", _BENCH, "the mirror cannot be reached", (
        "set BAROMETER_MIRROR to one that can")
    MIRROR_UNTRUSTED = "mirror-untrusted", _BENCH, "the mirror's files are not what was signed", (
        "try again later, or set BAROMETER_MIRROR")
    KEYRING_MISSING = "keyring-missing", _BENCH, "the keys of Debian's archive are not there", (
        "install debian-archive-keyring")
    # kernels: repositories and series
    NO_SUCH_REPOSITORY = "no-such-repository", _INPUT, "a folder is no git repository", "name one"
    BROKEN_REPOSITORY = "broken-repository", _INPUT, (
        "git does not take a folder for a repository"), "mend it until `git status` works there"
    NO_SUCH_REF = "no-such-ref", _INPUT, "the repository has no such commit", (
        "fetch it, or name another")
    OTHER_OWNER = "other-owner", _INPUT, "a repository is another user's", "see safe.directory"
    NO_WORK_TREE = "no-work-tree", _INPUT, "the repository has no work tree", (
        "name the folder that has, or write ref = \"HEAD\"")
    UNCOMMITTED_CHANGES = "uncommitted-changes", _INPUT, (
        "the repository has changes that are not committed"), (
        "commit them, or write ref = \"HEAD\"")
    EMPTY_RANGE = "empty-range", _INPUT, "a range has no commit", "check the order of its ends"
    MERGE_IN_RANGE = "merge-in-range", _INPUT, "a range has a merge, which is no patch", (
        "name a range without, or build its end")
    NO_SUCH_SERIES = "no-such-series", _INPUT, "there is no such series of patches", (
        "name a file, a folder, a range or a message-id")
    NO_SUCH_MAIL = "no-such-mail", _INPUT, "lore.kernel.org has no such mail", (
        "copy the message-id from the mail's header")
    LORE_UNREACHABLE = "lore-unreachable", _BENCH, "lore.kernel.org cannot be reached", (
        "save the mails to a file, and name it")
    NO_DIFF = "no-diff", _INPUT, "a series holds no diff", _FORMAT
    BINARY_FILE = "binary-file", _INPUT, "a file of a series is no text, or too large", _FORMAT
    DAMAGED_PATCH = "damaged-patch", _INPUT, "a patch is damaged", (
        "fetch it again, or write it by `git format-patch`")
    MIXED_SERIES = "mixed-series", _INPUT, "a file holds several series", "leave one in it"
    INCOMPLETE_SERIES = "incomplete-series", _INPUT, "patches of a series are missing", (
        "put the ones that are meant into a folder")
    SERIES_DOES_NOT_APPLY = "series-does-not-apply", _INPUT, (
        "a series does not apply to the source"), "name the source that it was made for"
    PATCH_CHANGES_NOTHING = "patch-changes-nothing", _INPUT, "a patch is empty", "take it out"
    NOTHING_CHANGED = "nothing-changed", _INPUT, "a kernel has the package's own sources", (
        "name a kernel that differs")
    # kernels: builds
    CONFIG = "config", _INPUT, "a kernel's configuration lacks an option, or is wrong", (
        "mend the line, or add what it depends on")
    BUILD_FAILED = "build-failed", _INPUT, "a kernel or module does not build", (
        "see the log that is named")
    BUILD_ROOT = "build-root", _BENCH, "the build root cannot be used", (
        "allow user namespaces, or build as root")
    CACHE_PATH = "cache-path", _INPUT, "mount(8) does not take the cache's path", (
        "set BAROMETER_CACHE to another folder")
    BASE_NOT_REPRODUCED = "base-not-reproduced", _BENCH, (
        "the base is not built as it was before the series"), "run again: all of it is built"
    NO_SUCH_FOLDER = "no-such-folder", _INPUT, "the module's folder is not there", "check the path"
    NO_SOURCES = "no-sources", _INPUT, "the folder of a module has no source file", (
        "lay the files out as in a kernel's tree")
    WHOLE_KERNEL = "whole-kernel", _INPUT, "a whole kernel's tree is given for a module", (
        "name a series of it")
    NO_SUCH_PLACE = "no-such-place", _INPUT, "a changed file has no place in the kernel's tree", (
        "use the paths of the tree")
    NOT_COMPILED = "not-compiled", _INPUT, (
        "the kernel's configuration does not compile a changed file"), (
        "leave the file out, or build a whole kernel")
    BEYOND_MODULES = "beyond-modules", _INPUT, "a change reaches further than modules", _WHOLE
    MAKEFILE_UNREADABLE = "makefile-unreadable", _INPUT, (
        "the Makefiles of a folder cannot be evaluated"), _WHOLE
    OTHER_COMPILER = "other-compiler", _INPUT, (
        "the kernel was built by another compiler than there is here"), _WHOLE
    PRISTINE_FAILS = "pristine-fails", _BENCH, (
        "an unchanged module does not build outside of its tree"), _WHOLE
    PRISTINE_DIFFERS = "pristine-differs", _BENCH, (
        "an unchanged module is not built as its package has it"), "build both kernels whole"
    NOT_PROVABLE = "not-provable", _INPUT, (
        "nothing on the host would prove that a changed module runs"), _WHOLE
    MODULE_UNREADABLE = "module-unreadable", _BENCH, "a module cannot be read", "build it again"
    # the runner
    BUG = "bug", _BUG | _TRIAL, "barometer itself failed", "report it with the traceback"
    INTERRUPTED = "interrupted", _INTERRUPT | _MADE, "the command was interrupted", _AGAIN
    DISK_FULL = "disk-full", _MADE, "there is no room", (
        "make room, or set BAROMETER_CACHE or --out to a larger disk")
    PROGRAM_MISSING = "program-missing", _MADE, "a program is not installed", _DOCTOR
    PROGRAM_FAILED = "program-failed", _MADE, "a program failed", _QUOTED
    PROGRAM_TIMEOUT = "program-timeout", _MADE, "a program took too long", _BUSY
    OUTPUT_FLOOD = "output-flood", _MADE, "a command printed more than is taken", (
        "see the end of its output in the message")
    TIMEOUT = "timeout", _MADE, "a step of the bench took too long", _BUSY
    NO_SUBUID = "no-subuid", _BENCH, "the user has no range in /etc/subuid", (
        "add it: usermod --add-subuids, --add-subgids")
    RECIPE = "recipe", _MADE, "an image's recipe does not fit its packages", (
        "mend the recipe below guests/")
    BOOT_LOADER_SIZE = "boot-loader-size", _MADE, "GRUB is too large for a guest's disk", (
        "report it with the version of GRUB")
    GUEST_CMDLINE = "guest-cmdline", _INPUT | _TRIAL, (
        "the guest's command line cannot be given by GRUB"), "shorten it, or boot directly"
    SURVEY_UNREADABLE = "survey-unreadable", _MADE, (
        "the list of a machine's PCI devices cannot be read"), _LOGIN
    TRIAL_TOO_LARGE = "trial-too-large", _MADE, "a trial's evidence is larger than is kept", (
        "see which file in its folder is large")
    # what `doctor` finds before a run: this machine, or a metal host
    ADDRESS_BITS = "address-bits", _BENCH, "the guest's address bits leave no room for the BAR", (
        "raise guest.phys_bits, or lower device.bar")
    BOOT = "boot", _BENCH, "the machine cannot boot another kernel in the way that is asked for", (
        "mend what the message names, or set host.boot")
    DEVICE = "device", _BENCH, "the device cannot be given to a guest", "name another device"
    DISK = "disk", _BENCH, "a first run has no room on disk", "make room, or set BAROMETER_CACHE"
    FIRMWARE = "firmware", _BENCH, "the machine has no OVMF", (
        "install it, or set guest.firmware = \"seabios\"")
    INTERRUPT_REMAPPING = "interrupt-remapping", _BENCH, (
        "interrupts are not remapped, so VFIO refuses every device"), "switch remapping on"
    IOMMU = "iommu", _BENCH, "no IOMMU is on", (
        "switch it on in the firmware and on the kernel's command line")
    KVM = "kvm", _BENCH, "host.accel is \"kvm\", and there is no KVM", "set host.accel = \"auto\""
    LARGE_BAR = "large-bar", _BENCH, "no device with a large BAR is free", (
        "free one: `barometer doctor` says what holds it")
    LIBVIRT = "libvirt", _BENCH, "the machine has no libvirt that answers", (
        "install it, or start its daemon")
    LIBVIRT_LIBRARY = "libvirt-library", _BENCH, "libvirt's library is missing or too old", _DOCTOR
    LOCKDOWN = "lockdown", _BENCH, "the kernel is locked down", "switch Secure Boot off"
    MEMORY = "memory", _BENCH, "too little memory is available", (
        "end other programs, or lower the memory asked for")
    PROGRAMS = "programs", _BENCH, "the machine lacks programs", "install the ones named"
    PYTHON = "python", _BENCH, "the machine's Python is too old", "install 3.9 or later there"
    QEMU = "qemu", _BENCH, "the machine has no QEMU, or an old one", "install it"
    ROOT = "root", _BENCH, "the user is not root on the machine", _SUDO
    SHM = "shm", _BENCH, "/dev/shm cannot be written", "mount a tmpfs there"
    SUBUID = "subuid", _BENCH, "no image can be built as this user", (
        "add ranges in /etc/subuid and /etc/subgid")
    # a machine is reached, and asked
    HOST_NO_NAME = "host-no-name", _MADE, "the host's name is not known", (
        "check the address, and the name servers")
    HOST_NO_SSH = "host-no-ssh", _MADE, "no SSH server answers on the host", (
        "see whether `ssh HOST` works")
    HOST_NO_PROXY = "host-no-proxy", _MADE, "ssh's proxy command cannot be started", (
        "mend ProxyCommand or ProxyJump")
    HOST_NO_LOGIN = "host-no-login", _MADE, "the host refused the login", (
        "name a key without passphrase by IdentityFile")
    HOST_NO_ROOT = "host-no-root", _MADE, "the user may not become root there", _SUDO
    HOST_UNKNOWN_HOST_KEY = "host-unknown-host-key", _MADE, "the host's key is not known", (
        "connect once by hand and compare the fingerprint")
    HOST_WRONG_HOST_KEY = "host-wrong-host-key", _MADE, (
        "another machine answers on the host's port"), (
        "compare the fingerprint, then ssh-keygen -R")
    HOST_SSH_LOST = "host-ssh-lost", _MADE, "the SSH connection to the host was lost", (
        "see the host's console and the network")
    HOST_IS_RUNNER = "host-is-runner", _MADE, (
        "the host is this machine, whose boot ends the run"), "run barometer on another machine"
    HOST_SILENT = "host-silent", _MADE, "an agent on the host gave no answer that can be read", (
        "see what it printed instead")
    NO_PYTHON = "no-python", _MADE, "the machine lacks Python", "install Python 3.9 or later there"
    CHECKUP = "checkup", _MADE, "the survey of a machine failed", _QUOTED
    COMMAND_FAILED = "command-failed", _MADE, "a command on a machine failed", _QUOTED
    ANSWER_GARBLED = "answer-garbled", _MADE, "an agent's answer is malformed", _LOGIN
    CONSOLE_COMMAND = "console-command", _MADE, "host.console failed", "try it by hand"
    # libvirt and QEMU
    LIBVIRT_CONNECT = "libvirt-connect", _MADE, "libvirt cannot be reached", "start its daemon"
    LIBVIRT_FAILED = "libvirt-failed", _MADE, "a call into libvirt failed", _QUOTED
    LIBVIRT_SILENT = "libvirt-silent", _MADE, "a call into libvirt did not return", _BUSY
    LIBVIRT_START = "libvirt-start", _MADE, "libvirt could not start a domain", _QUOTED
    LIBVIRT_REBOOT = "libvirt-reboot", _MADE, "libvirt could not reboot a domain", _QUOTED
    BAD_DOMAIN_XML = "bad-domain-xml", _MADE, "libvirt's answer about a domain cannot be read", (
        "report it with `virsh dumpxml`")
    MONITOR = "monitor", _MADE, "QEMU did not answer its monitor", _BUSY
    NO_KVM = "no-kvm", _MADE, "guests do not run under KVM here", "set host.accel = \"auto\""
    HOST_CRASH = "host-crash", _MADE, "the QEMU that the host runs in crashed", _AGAIN
    HOST_STOPPED = "host-stopped", _MADE, "the QEMU that the host runs in is stopped", (
        "see who stops processes (SIGSTOP, a debugger) on the runner")
    EXTRA_MISSING = "extra-missing", _BENCH, "a part of barometer is not installed", (
        "install it as the message says")
    EXACT_CRAWL = "exact-crawl", _MADE, "the clock of an emulated host all but stood still", _AGAIN
    HOST_CLOCK = "host-clock", _MADE, "the clock of an emulated host runs too fast", _AGAIN
    RESTORED_HOST = "restored-host", _MADE, "a trial on a restored host failed", _AGAIN
    HOST_TIMERS = "host-timers", _MADE, "the timers of a host's CPU no longer fire", _AGAIN
    # the host and its kernel
    HOST_START = "host-start", _MADE, "the first program of the host's image failed", _HOST
    HOST_NO_BOOT = "host-no-boot", _TRIAL, "the host's kernel does not boot", (
        "see its last words; host.console records them")
    HOST_ENDED = "host-ended", _MADE, "the host's machine ended by itself", _HOST
    HOST_HANG = "host-hang", _MADE, "the host hangs", _HOST
    HOST_PANIC = "host-panic", _TRIAL, "the host's kernel panicked", _CALLS
    UNPROVEN_PANIC = "unproven-panic", _MADE, (
        "a kernel panicked before it was known which one it is"), _HOST
    HOST_NO_TIMER = "host-no-timer", _TRIAL, "the host's kernel found no timer", _AGAIN
    HOST_HUNG_TASK = "host-hung-task", _MADE, "the kernel reports a hung task", _CALLS
    HOST_SOFT_LOCKUP = "host-soft-lockup", _MADE, "the host's kernel reports a soft lockup", _CALLS
    HOST_HARD_LOCKUP = "host-hard-lockup", _MADE, "the host's kernel reports a hard lockup", _CALLS
    HOST_RCU_STALL = "host-rcu-stall", _MADE, "the host's kernel reports an RCU stall", _CALLS
    HOST_LOST_INTERRUPT = "host-lost-interrupt", _MADE, (
        "the host's kernel reports a lost interrupt"), _AGAIN
    CONSOLE_FLOOD = "console-flood", _MADE, "a console prints more than is kept", (
        "see its beginning and its end")
    WRONG_HOST = "wrong-host", _MADE, "another host answered", _AGAIN
    WRONG_KERNEL = "wrong-kernel", _JUDGE | _LEFT | _MADE, (
        "another kernel runs than was planned"), "see which one the machine boots by default"
    WRONG_MODULE = "wrong-module", _MADE, "another module is loaded than was built", (
        "see whether the initramfs has another")
    KERNEL_MODULES = "kernel-modules", _MADE, "a module of the host's kernel cannot be read", (
        "fetch or build the kernel again")
    MODULES_REFUSED = "modules-refused", _TRIAL, "the kernel does not load a module", (
        "see the kernel's log")
    MODULE_IN_USE = "module-in-use", _MADE, "a module cannot be removed while it is in use", (
        "end what uses it")
    SETTING_REFUSED = "setting-refused", _MADE, (
        "the kernel does not take a value that the scenario sets"), "set one that it accepts"
    NO_HUGE_PAGES = "no-huge-pages", _TRIAL, "the host has too few free huge pages", (
        "set them aside at boot by host.cmdline")
    # the device
    DEVICE_MISSING = "device-missing", _MADE, (
        "there is no such device, or the kernel does not find it"), "see `lspci` on the machine"
    DEVICE_AMBIGUOUS = "device-ambiguous", _MADE, "the scenario fits several devices", (
        "choose one by device.address")
    DEVICE_BAR = "device-bar", _MADE, "the device has no BAR of device.bar", (
        "set a size that the message lists")
    DEVICE_REFUSED = "device-refused", _MADE, "the device is in use", "end what uses it"
    DEVICE_NOT_PLACED = "device-not-placed", _TRIAL, "the host's kernel did not place the BAR", (
        "see its log; raise host.phys_bits")
    NO_BAR = "no-bar", _BENCH, "the domain's devices have no memory BAR", (
        "profile a domain whose devices have one")
    BIND = "bind", _MADE, "a driver did not take the device", "see the kernel's log"
    DRIVER_HANGS = "driver-hangs", _MADE, "a driver does not let go of the device", (
        "end what uses the device")
    DECODE_ALWAYS_ON = "decode-always-on", _MADE, (
        "the device's memory decoding cannot be turned off"), "name another device"
    # tracers and agents
    TRACER_REFUSED = "tracer-refused", _MADE, "the kernel does not take a probe", (
        "leave the pass out, or take another kernel")
    TRACER_LOST = "tracer-lost", _MADE, "the tracer ended or does not answer", "see the host's log"
    TRACER_LEFT = "tracer-left", _MADE, "probes could not be removed", (
        "run `barometer profile --clear`, or restart the machine")
    PROFILE = "profile", _MADE, "QEMU's instruction log cannot be used", "leave `profile` out"
    PROFILE_BUSY = "profile-busy", _MADE, "another profile is at work", (
        "wait for it, or run `barometer profile --clear`")
    DOMAIN_ENDED = "domain-ended", _BENCH, "the domain ended instead of a reboot", "see its log"
    NO_REBOOT = "no-reboot", _BENCH, "the domain's guest did not reboot in time", (
        "reboot it by hand, or start it anew")
    MAP_SILENT = "map-silent", _MADE, "the map agent ended early", "see the host's log"
    MAP_REFUSED = "map-refused", _JUDGE | _TRIAL, "the kernel refused to map a BAR", (
        "see its errno, and the limits of VFIO")
    # the guest
    GUEST_PANIC = "guest-panic", _TRIAL, "the guest's kernel panicked", _GUEST
    GUEST_NO_TIMER = "guest-no-timer", _TRIAL, "the guest's kernel found no timer", _AGAIN
    GUEST_STALL = "guest-stall", _TRIAL, "the guest hangs, and its kernel reports a stall", _GUEST
    GUEST_HANG = "guest-hang", _TRIAL, "the guest hangs", _GUEST
    GUEST_END_HANG = "guest-end-hang", _TRIAL, (
        "the guest powered down, and its QEMU does not end"), _AGAIN
    GUEST_ENDED = "guest-ended", _TRIAL, "the guest ended by itself", (
        "see QEMU's output and the guest's console")
    GUEST_NO_SSH = "guest-no-ssh", _TRIAL, "no SSH server answers in the guest", _GUEST
    GUEST_SSH_LOST = "guest-ssh-lost", _MADE, "the SSH connection to the guest was lost", _GUEST
    GUEST_WRONG_HOST_KEY = "guest-wrong-host-key", _TRIAL, (
        "another machine answers on the guest's port"), _AGAIN
    NO_GUEST_DISK = "no-guest-disk", _MADE, "the host has no disk for the guest to boot from", (
        "report it with the scenario")
    # metal hosts and the keeper (guests/agents/keeper)
    LEASE_HELD = "lease-held", _MADE, "another runner has the machine", "wait for it (host.wait)"
    LEASE_LOST = "lease-lost", _MADE, "the lease of the machine expired", _AGAIN
    MACHINE_LOST = "machine-lost", _MADE, (
        "the machine does not come back under its own kernel either"), "restart it by hand"
    NOT_PUT_BACK = "not-put-back", _LEFT | _MADE, "the machine could not be put back", (
        "mend what is named, then `barometer recover HOST`")
    UNREADABLE = "unreadable", _LEFT | _TRIAL, "the machine's journal cannot be read", (
        "put back by hand what is named")
    UNFINISHED = "unfinished", _MADE | _JUDGE, (
        "a trial was cut short, or a machine was not put back"), "run `barometer recover HOST`"
    NO_WAY_TO_BOOT = "no-way-to-boot", _MADE, "the machine cannot boot another kernel once", (
        "install kexec, or mend its boot loader")
    NO_INITRAMFS_TOOL = "no-initramfs-tool", _MADE, "the machine cannot make an initramfs", (
        "install initramfs-tools or dracut there")
    KEEPER_FAILED = "keeper-failed", _MADE, "the keeper on the machine failed", _QUOTED
    BAD_REQUEST = "bad-request", _MADE, "the keeper was asked for what it cannot do", "report it"
    BOOT_ENTRY = "boot-entry", _MADE, "a boot's entry could not be made or removed", _NAMED
    EXISTS = "exists", _MADE, "somebody's file is in the way", "move it away"
    GOING_DOWN = "going-down", _MADE, "the machine is about to boot", "wait until it is up again"
    GRUB = "grub", _MADE, "GRUB cannot boot a kernel once", "set host.boot, or mend GRUB"
    GUEST_STAYS = "guest-stays", _MADE, "an earlier guest does not end", "restart the machine"
    KERNEL_CHANGED = "kernel-changed", _MADE, (
        "the machine's own kernel was not proven to run again"), "restart it into that kernel"
    KEXEC = "kexec", _MADE, "kexec refused the kernel", "set host.boot, or see the kernel's log"
    MACHINE_BUSY = "machine-busy", _MADE, "another keeper is at work on the machine", (
        "see whether it hangs there")
    MOUNT = "mount", _MADE, "a folder cannot be mounted over", _NAMED
    MOUNTED = "mounted", _MADE, "a mount hides the bench's files", "unmount it"
    NO_ORIGINAL = "no-original", _MADE, "the machine's own kernel was not recorded", (
        "restart the machine into that kernel")
    NO_SYSTEMD = "no-systemd", _MADE, "the machine has no systemd", (
        "set host.power_cycle, which restarts it instead")
    NOT_ROOT = "not-root", _MADE, "the keeper is not root", _SUDO
    ORIGINAL_DAMAGED = "original-damaged", _MADE, (
        "the record of the machine's own kernel is damaged"), (
        "run `barometer recover HOST` once it runs that kernel")
    OS_ERROR = "os-error", _MADE, "a file on the machine could not be used", _NAMED
    PATH_REFUSED = "path-refused", _MADE, (
        "the keeper was asked for a path that is not the bench's"), "report it"
    SYSTEMD_BOOT = "systemd-boot", _MADE, "systemd-boot cannot boot a kernel once", (
        "set host.boot, or mend it")
    TRACING = "tracing", _MADE, "tracing is off, or leftovers cannot be cleared", "mount tracefs"
    WATCHDOG = "watchdog", _MADE, "the watchdog cannot be used", _NAMED
    WRONG_IMAGE = "wrong-image", _LEFT | _MADE, "a staged kernel is damaged", _AGAIN
    # evidence, when it is judged
    MISSING_EVIDENCE = "missing-evidence", _JUDGE, "a file of a run is missing", _RESTORE
    BAD_EVIDENCE = "bad-evidence", _JUDGE, "a file of a run is malformed", _RESTORE
    EVIDENCE_CHANGED = "evidence-changed", _JUDGE, "a file is not what was collected", _RESTORE
    BAD_HISTOGRAM = "bad-histogram", _JUDGE, "a histogram is malformed", _REDO
    BAD_TRACE = "bad-trace", _JUDGE, "a trace is malformed", _REDO
    UNPAIRED_TRACE = "unpaired-trace", _JUDGE, (
        "a map or unmap began and never returned in a trace"), _REDO
    LOST_EVENTS = "lost-events", _JUDGE, "a trace or histogram lost events", (
        "make the trial again, with fewer samples")
    MISSED_PROBES = "missed-probes", _JUDGE, "a probe missed hits", _REDO
    WRONG_CLOCK = "wrong-clock", _JUDGE, "a trace has another clock than was set", _REDO
    CLOCK_NOT_CHECKED = "clock-not-checked", _JUDGE, (
        "a trace has too few lines to check its clock"), _REDO
    CONDITIONS_NOT_RECORDED = "conditions-not-recorded", _JUDGE, (
        "a trial lacks what its conditions are compared by"), _REDO
    SETTINGS_NOT_PROVEN = "settings-not-proven", _JUDGE, (
        "a trial does not prove its arm's settings"), _REDO
    SAME_BOOT = "same-boot", _JUDGE, "two trials of a kernel have copies of one host", _REDO
    CLOCK_JUMP = "clock-jump", _JUDGE, "two clocks of the host drifted apart in a boot", (
        "use a stable clock source")
    NO_MARK = "no-mark", _JUDGE, "a guest's boot has no mark", _REDO
    BAR_NOT_PLACED = "bar-not-placed", _JUDGE, "a guest booted without its BAR placed", (
        "raise guest.phys_bits")
    WRONG_BAR = "wrong-bar", _JUDGE, "the largest BAR is not the one that was planned", (
        "name another device, or its size")
    BAR_NOT_MAPPED = "bar-not-mapped", _JUDGE, "a guest's boot never mapped the BAR", _GUEST
    MAPPED_ANYWAY = "mapped-anyway", _JUDGE, "QEMU mapped a BAR that it was told not to map", (
        "report it with QEMU's version")
    PARTIAL_MAP = "partial-map", _JUDGE, "the kernel mapped less than the BAR", (
        "report it to the kernel's developers")
    MAPS_DISAGREE = "maps-disagree", _JUDGE, "evidence disagrees on what was mapped", _REPORT
    UNMAPS_DISAGREE = "unmaps-disagree", _JUDGE, "maps and unmaps do not match", _REPORT
    COUNTS_DISAGREE = "counts-disagree", _JUDGE, "evidence disagrees on a count", _REPORT
    SUMS_DISAGREE = "sums-disagree", _JUDGE, "the parts of a profile do not add up", _REPORT
    IOMMUFD_NOT_TRACED = "iommufd-not-traced", _JUDGE, (
        "QEMU maps by iommufd, whose maps of BARs are not traced"), "set guest.backend = \"type1\""
    NOT_COMPARABLE = "not-comparable", _JUDGE, (
        "the runs differ in what makes numbers comparable"), "compare runs of one kind"
    NO_TIMELINE = "no-timeline", _JUDGE, "the trial has no traced guest boot", (
        "run the pass `timing` of `guest-boot`")
    NO_EXEC = "no-exec", _JUDGE, "the trace lacks the beginning of the boot", "profile it again"
    NO_MAPS = "no-maps", _INPUT | _JUDGE, "VFIO's type 1 container mapped nothing", (
        "see whether the domain uses iommufd")
    UNDECIDED_FAILURE = "undecided-failure", _JUDGE, (
        "it is undecided whose the failures are"), "run more trials"
    NOT_JUDGED = "not-judged", _JUDGE, "a run is too little to judge what a test asserts by", (
        "see its report: more pairs may decide, or a trial has to be made again")
    # fmt: on


_BY_NAME = {str(reason): reason for reason in Reason}


def find_reason(name: str) -> Reason:
    """Return the reason of this name. Raises KeyError if there is none, which is a bug."""
    return _BY_NAME[name]


def parse_reason(name: str) -> Reason | None:
    """Return the reason of this name, or None: another version's evidence has other names."""
    return _BY_NAME.get(name)
