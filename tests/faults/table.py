"""The matrix of faults. Each row has what goes wrong, who has to act, the exit code, the reason,
how soon it is over, what the message names, and the test that provokes it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Whose = Literal["user", "bench", "undecided", "arm", "nobody"]
"""Who has to act. nobody: barometer survives the fault, or the fault is an interrupt that somebody
wanted. A run that survives still ends with 3 if it needs a mirror, because nobody serves one."""
EXIT_CODES: dict[Whose, tuple[int, ...]] = {
    "user": (2,), "bench": (3, 4), "undecided": (1, 3, 4), "arm": (1,), "nobody": (0, 3, 130, 141),
}  # fmt: skip


class Row(NamedTuple):
    fault: str
    whose: Whose
    code: int
    """Exit code of the command. For a fault on a machine: of a run that has this fault only."""
    reason: str
    """Name of the reason in orchestrator.base.reasons; empty if nothing failed."""
    seconds: float
    """Most seconds until the command has ended; until the trial has, for a fault on a machine."""
    names: tuple[str, ...]
    """Words that the message or the report must have: a file, a key, a host, a command."""
    test: str
    """FILE::TEST[CASE] in this folder. Without [CASE]: all cases of the test."""
    is_judged: bool = False
    """True if the reason is in a run's report or in the keeper's answer. It is then no error of
    the command, whose last line names no reason."""

    @property
    def last_reason(self) -> str:
        """Reason that the command's last line names; empty if that line names none."""
        return "" if self.is_judged else self.reason


def _host(fault: str, whose: Whose, reason: str, case: str, *names: str, test: str = "") -> Row:
    """Return the row of a fault on a booted machine."""
    code = {"bench": 3, "undecided": 4}.get(whose, 0)
    name = f"test_hosts.py::{test or 'test_host_fails_in_the_middle_of_a_guest_boot'}"
    return Row(
        fault, whose, code, reason, 60, names, f"{name}[{case}]" if case else name, is_judged=True
    )


HOSTS = (
    _host("libvirtd on the host is stopped", "bench", "libvirt-silent", "libvirtd-stopped"),
    _host("sshd on the host is killed", "bench", "host-ssh-lost", "sshd-killed"),
    _host("sshd on the host is stopped", "bench", "host-ssh-lost", "sshd-stopped"),
    _host("the host's network goes down", "bench", "host-ssh-lost", "network-down"),
    _host("the host's kernel panics", "undecided", "host-panic", "host-panics"),
    _host("the host's console is flooded with lines", "undecided", "console-flood", "host-floods"),
    _host(
        "the host's console is flooded within a line", "undecided", "console-flood",
        "host-floods-in-a-line",
    ),
    _host(
        "the host's QEMU crashes", "bench", "host-crash", "",
        test="test_hosts_qemu_crashes_and_the_trial_is_begun_again",
    ),
    _host(
        "the host's QEMU is stopped while the host boots", "bench", "host-stopped", "",
        test="test_hosts_qemu_is_stopped_while_the_host_boots",
    ),
    _host(
        "the host's QEMU is stopped while a guest boots", "bench", "host-stopped", "",
        test="test_hosts_qemu_is_stopped_while_a_guest_boots",
    ),
    _host(
        "a task of the host hangs while its CPUs are idle", "bench", "host-hung-task", "",
        test="test_hung_task_with_idle_processors_ends_the_trial_with_its_line",
    ),
    _host(
        "the guest's QEMU is killed", "undecided", "guest-ended",
        "mark-KILL-guest-ended-undecided", test="test_guests_qemu_fails",
    ),
    _host(
        "the guest's QEMU aborts", "undecided", "guest-ended",
        "mark-ABRT-guest-ended-undecided", test="test_guests_qemu_fails",
    ),
    _host(
        "the guest's QEMU is stopped", "undecided", "guest-hang",
        "mark-STOP-guest-hang-undecided", test="test_guests_qemu_fails",
    ),
    _host(
        "the guest's QEMU is stopped in its exit", "bench", "guest-end-hang",
        "exit-STOP-guest-end-hang-bench", test="test_guests_qemu_fails",
    ),
    _host(
        "the agent that watches the guest is killed", "bench", "host-ssh-lost", "",
        test="test_agent_that_watches_the_guest_is_killed",
    ),
    _host(
        "anybody says the words of marks and reports", "nobody", "", "",
        test="test_words_that_anybody_can_say_are_no_marks_and_no_reports",
    ),
    _host("the host's clock jumps", "nobody", "", "", test="test_clock_of_the_host_jumps"),
    _host(
        "libvirtd on the host is killed", "bench", "libvirt-failed", "",
        test="test_libvirtd_that_is_killed_is_no_kernels_fault",
    ),
)  # fmt: skip


_Facts = tuple[str, Whose, int, str, str, tuple[str, ...], float]
"""Fault, whose, exit code, reason, test, names, seconds."""


def _rows(file: str, *rows: _Facts, judged: bool = False) -> tuple[Row, ...]:
    return tuple(
        Row(fault, whose, code, reason, seconds, names, f"{file}::{test}", is_judged=judged)
        for fault, whose, code, reason, test, names, seconds in rows
    )


_REACH, _TRUST = "mirror-unreachable", "mirror-untrusted"
_W, _V = "test_nothing_can_be_written", "test_folder_vanishes_during_a_run"
_O, _S, _T = "test_out_is_something_else", "test_scenario_is_none", "test_two_runs_in_one_folder"
_P = "test_temporary_files_have_no_room"
FOLDERS = _rows(
    "test_folders.py",
    ("the cache's disk is full", "bench", 3, "disk-full", "test_cache_is_full",
     ("cache/barometer", "BAROMETER_CACHE"), 10),
    ("the cache's disk has no room for images", "bench", 3, "disk",
     "test_run_has_no_room_for_images", ("cache/barometer", "BAROMETER_CACHE"), 20),
    ("the disk of the runs' records is full", "bench", 3, "disk-full", "test_state_is_full",
     ("/state",), 20),
    ("a new run's disk is full", "bench", 3, "disk-full", "test_new_run_is_on_a_full_disk",
     ("work/out", "--out"), 10),
    ("the disk of a run that is judged is full", "bench", 3, "disk-full",
     "test_report_of_a_run_on_a_full_disk", ("disk/run",), 20),
    ("the disk of a scenario that is written is full", "user", 2, "path",
     "test_written_scenario_is_on_a_full_disk", ("out/new.toml",), 10),
    ("the disk of a Perfetto trace is full", "user", 2, "path",
     "test_perfetto_trace_is_on_a_full_disk", ("out/x.pftrace",), 20),
    ("standard output's disk is full", "bench", 3, "disk-full", "test_output_is_full",
     ("standard output",), 10),
    ("--out is read-only", "user", 2, "out-unwritable", f"{_W}[out-read-only]",
     ("work/out", "--out"), 20),
    ("--out is somebody else's", "user", 2, "out-unwritable", f"{_W}[out-denied]",
     ("work/out", "--out"), 20),
    ("the cache is read-only", "user", 2, "path", f"{_W}[cache-read-only]", ("cache/barometer",),
     10),
    ("the cache is somebody else's", "user", 2, "path", f"{_W}[cache-denied]",
     ("cache/barometer",), 10),
    ("the cache is a file", "user", 2, "path", f"{_W}[cache-is-a-file]", ("cache/barometer",), 10),
    ("the folder of the runs' records is read-only", "user", 2, "path", f"{_W}[state-read-only]",
     ("/state",), 20),
    ("the folder of the runs' records is somebody else's", "user", 2, "path",
     f"{_W}[state-denied]", ("/state",), 20),
    ("the folder of the runs' records is a file", "user", 2, "path", f"{_W}[state-is-a-file]",
     ("/state",), 20),
    ("/dev/shm is full, and the device's file there is sparse", "nobody", 3, _REACH,
     f"{_W}[shm-full]", ("BAROMETER_MIRROR",), 20),
    ("/dev/shm is read-only", "bench", 3, "shm", f"{_W}[shm-read-only]", ("/dev/shm",), 20),
    ("a run that is judged is read-only", "nobody", 0, "",
     "test_report_of_somebody_elses_run[read-only]", ("not saved", "work/run"), 20),
    ("a run that is judged is somebody else's", "nobody", 0, "",
     "test_report_of_somebody_elses_run[denied]", ("not saved", "work/run"), 20),
    ("TMPDIR's disk is full", "nobody", 3, _REACH, f"{_P}[full]", ("BAROMETER_MIRROR",), 20),
    ("TMPDIR is read-only", "nobody", 3, _REACH, f"{_P}[read-only]", ("BAROMETER_MIRROR",), 20),
    ("TMPDIR is a file", "nobody", 3, _REACH, f"{_P}[is-a-file]", ("BAROMETER_MIRROR",), 20),
    ("--out is a file", "user", 2, "run-exists", f"{_O}[file]", ("work/out",), 10),
    ("--out is below a file", "user", 2, "out-unwritable", f"{_O}[below-a-file]",
     ("work/out/run",), 20),
    ("--out is a link that leads nowhere", "user", 2, "out-unwritable", f"{_O}[dangling-link]",
     ("work/out",), 20),
    ("--out holds somebody's files", "user", 2, "run-exists", f"{_O}[somebody-elses]",
     ("work/out",), 10),
    ("--out's lock is a link to another file", "user", 2, "path", f"{_O}[planted-lock]",
     ("out/.lock",), 20),
    ("--out's name is too long", "user", 2, "path", f"{_O}[long-name]", ("x" * 300,), 10),
    ("the scenario is missing", "user", 2, "scenario", f"{_S}[missing]", ("scenario.toml",), 10),
    ("the scenario is a folder", "user", 2, "scenario", f"{_S}[directory]", ("scenario.toml",),
     10),
    ("the scenario is rubbish", "user", 2, "scenario", f"{_S}[rubbish]", ("scenario.toml",), 10),
    ("the scenario has no end", "user", 2, "scenario", f"{_S}[endless]", ("scenario.toml",), 10),
    ("the scenario is empty", "user", 2, "scenario", f"{_S}[empty]", ("scenario.toml", "name"),
     10),
    ("the current folder was removed", "user", 2, "path", "test_current_folder_was_removed",
     ("current folder",), 10),
    ("--out vanishes during a run", "nobody", 3, _REACH, f"{_V}[out]", ("BAROMETER_MIRROR",), 30),
    ("the cache vanishes during a run", "nobody", 3, _REACH, f"{_V}[cache]",
     ("BAROMETER_MIRROR",), 30),
    ("the folder of the runs' records vanishes during a run", "nobody", 3, _REACH, f"{_V}[state]",
     ("BAROMETER_MIRROR",), 30),
    ("TMPDIR vanishes during a run", "nobody", 3, _REACH, f"{_V}[tmp]", ("BAROMETER_MIRROR",), 30),
    ("two runs in one folder", "user", 2, "run-exists", f"{_T}[path]", ("work/out",), 20),
    ("two runs in one folder, one through a link", "user", 2, "run-exists", f"{_T}[link]",
     ("work/link",), 20),
    ("two runs in one folder, one in a container", "user", 2, "run-exists", f"{_T}[container]",
     ("work/out",), 20),
    ("`clean` beside a run in a container", "nobody", 0, "",
     "test_clean_beside_a_run_in_another_container", ("left alone",), 10),
    ("`clean` after a run that was killed in a container", "nobody", 0, "",
     "test_clean_after_a_run_that_was_killed_in_another_container", ("may be running", "remove"),
     10),
    ("a run is killed", "nobody", 0, "", "test_run_that_was_killed", ("cleaned",), 10),
)  # fmt: skip

_M, _L = "test_mirror", "test_while_the_mirror_hangs"
_URL = ("http://127.0.0.1:", "BAROMETER_MIRROR")
MIRRORS = _rows(
    "test_mirrors.py",
    ("nobody serves the mirror", "bench", 3, _REACH, "test_nobody_serves_the_mirror", _URL, 10),
    ("no host has the mirror's name", "bench", 3, _REACH, "test_no_host_has_the_mirrors_name",
     ("http://mirror.invalid", "BAROMETER_MIRROR"), 20),
    ("the mirror's address is none", "bench", 3, _REACH, "test_mirror_is_no_url",
     ("no mirror at all", "BAROMETER_MIRROR"), 10),
    ("the mirror says nothing", "bench", 3, _REACH, f"{_M}[hangs]", _URL, 20),
    ("the mirror trickles", "bench", 3, _REACH, f"{_M}[trickles]", _URL, 20),
    ("the mirror redirects to itself", "bench", 3, _REACH, f"{_M}[redirects-to-itself]", _URL, 10),
    ("the mirror redirects to nobody", "bench", 3, _REACH, f"{_M}[redirects-to-nobody]", _URL, 10),
    ("the mirror has nothing", "user", 2, "no-such-suite", f"{_M}[404]",
     ("http://127.0.0.1:", "trixie"), 10),
    ("the mirror forbids", "bench", 3, _REACH, f"{_M}[403]", _URL, 10),
    ("the mirror is broken", "bench", 3, _REACH, f"{_M}[500]", _URL, 10),
    ("the mirror hangs up", "bench", 3, _REACH, f"{_M}[hangs-up]", _URL, 10),
    ("a network's login page is in place of the mirror", "bench", 3, _TRUST, f"{_M}[portal]",
     _URL, 10),
    ("the mirror serves rubbish", "bench", 3, _TRUST, f"{_M}[rubbish]", _URL, 10),
    ("the mirror serves empty files", "bench", 3, _TRUST, f"{_M}[empty]", _URL, 10),
    ("the mirror's Release is cut", "bench", 3, _TRUST, f"{_M}[cut-release]", _URL, 10),
    ("the mirror's Release was changed", "bench", 3, _TRUST, f"{_M}[changed-release]", _URL, 10),
    ("the mirror is unsigned", "bench", 3, _TRUST, f"{_M}[unsigned]", _URL, 10),
    ("the mirror is signed by a stranger", "bench", 3, _TRUST, "test_stranger_signed_it", _URL,
     10),
    ("the mirror's lists are gone", "bench", 3, _REACH, f"{_M}[lists-gone]", _URL, 10),
    ("the mirror's lists are cut", "bench", 3, _TRUST, f"{_M}[lists-cut]", _URL, 10),
    ("the mirror's lists were changed", "bench", 3, _TRUST, f"{_M}[lists-changed]", _URL, 10),
    ("the mirror hangs after its Release", "bench", 3, _REACH, f"{_M}[lists-hang]", _URL, 20),
    ("the mirror's Release is of a time to come", "bench", 3, _TRUST,
     "test_clocks_differ[future]", _URL, 10),
    ("the mirror's Release has expired", "bench", 3, _TRUST, "test_clocks_differ[expired]", _URL,
     10),
    ("the mirror has no such suite", "user", 2, "no-such-suite", "test_mirror_has_no_such[suite]",
     ("trixiey", "arms.baseline.kernel", "trixie"), 10),
    ("the mirror has no such package", "user", 2, "no-such-package",
     "test_mirror_has_no_such[package]", ("arms.baseline.kernel", "linux-image-cloud-amd64"), 10),
    ("the mirror has no such version", "user", 2, "no-such-version",
     "test_mirror_has_no_such[version]", ("arms.baseline.kernel", "9.9", "1.0"), 10),
    ("the mirror is gone, and its lists are known", "nobody", 0, "",
     "test_mirror_is_gone_and_its_lists_are_known", ("(1.0)",), 10),
    ("the key of Debian's archive is missing", "bench", 3, "keyring-missing",
     "test_key_of_debians_archive_is_missing", ("debian-archive-keyring",), 10),
    ("a kernel's package is gone", "bench", 3, _REACH, "test_package[gone]", _URL, 20),
    ("a kernel's package is cut", "bench", 3, _TRUST, "test_package[cut]", _URL, 20),
    ("a kernel's package was changed", "bench", 3, _TRUST, "test_package[changed]", _URL, 20),
    ("a kernel's package does not come", "bench", 3, _REACH, "test_package[hangs]", _URL, 20),
    ("a kernel's package has no kernel", "bench", 3, "package-layout",
     "test_package_has_no_kernel", ("linux-image-cloud-amd64",), 20),
    ("the kernel in a package is none", "user", 2, "not-a-kernel",
     "test_kernel_in_the_package_is_none", ("vmlinuz", "arms.baseline.kernel"), 20),
)  # fmt: skip

_R, _E = "test_record_of_a_run", "test_evidence_that_is_not_what_was_collected"
_C = "test_evidence_that_was_collected_so"
_BAD, _MISSING = "bad-evidence", "missing-evidence"
_K = "test_record_of_a_killed_run"
RECORDS = _rows(
    "test_records.py",
    ("a run has no plan", "bench", 4, _MISSING, f"{_R}[plan-missing]", ("work/run", "plan.json"),
     10),
    ("a run's plan is empty", "bench", 4, _BAD, f"{_R}[plan-empty]", ("run/plan.json",), 10),
    ("a run's plan is cut", "bench", 4, _BAD, f"{_R}[plan-cut]", ("run/plan.json",), 10),
    ("a run's plan is nested without end", "bench", 4, _BAD, f"{_R}[plan-deep]",
     ("run/plan.json",), 10),
    ("a run's plan is of a newer barometer", "bench", 4, _BAD, f"{_R}[plan-newer]",
     ("run/plan.json", "schema"), 10),
    ("a run's plan lacks a kernel", "bench", 4, _BAD, f"{_R}[plan-lacks-a-kernel]",
     ("run/plan.json", "baseline"), 10),
    ("a run has no scenario", "bench", 4, _MISSING, f"{_R}[scenario-missing]",
     ("run/scenario.toml",), 10),
    ("a run's scenario is cut", "user", 2, "scenario", f"{_R}[scenario-cut]",
     ("run/scenario.toml",), 10),
    ("a run's scenario is rubbish", "bench", 4, _MISSING, f"{_R}[scenario-rubbish]",
     ("run/scenario.toml",), 10),
    ("a trial has no manifest", "bench", 4, _MISSING, f"{_R}[manifest-missing]",
     ("0002-candidate/manifest.json",), 10),
    ("a trial's manifest is empty", "bench", 4, _BAD, f"{_R}[manifest-empty]",
     ("0002-candidate/manifest.json",), 10),
    ("a trial's manifest is cut", "bench", 4, _BAD, f"{_R}[manifest-cut]",
     ("0002-candidate/manifest.json",), 10),
    ("a trial's manifest is rubbish", "bench", 4, _BAD, f"{_R}[manifest-rubbish]",
     ("0002-candidate/manifest.json",), 10),
    ("a trial's manifest is of a newer barometer", "bench", 4, _BAD, f"{_R}[manifest-newer]",
     ("0002-candidate/manifest.json", "schema"), 10),
    ("a trial's manifest is a folder", "bench", 4, _BAD, f"{_R}[manifest-is-a-folder]",
     ("0002-candidate/manifest.json",), 10),
    ("a trial's manifest is a named pipe", "bench", 4, _BAD, f"{_R}[manifest-is-a-pipe]",
     ("0002-candidate/manifest.json", "plain file"), 10),
    ("a trial's manifest has no end", "bench", 4, _BAD, f"{_R}[manifest-is-endless]",
     ("0002-candidate/manifest.json", "symbolic link"), 10),
    ("a trial's manifest is larger than the memory", "bench", 4, _BAD, f"{_R}[manifest-is-huge]",
     ("0002-candidate/manifest.json", "too large"), 10),
    ("a run's scenario is a named pipe", "bench", 4, _MISSING, f"{_R}[scenario-is-a-pipe]",
     ("run/scenario.toml", "plain file"), 10),
    ("a trial's outcome is none", "bench", 4, _BAD, f"{_R}[outcome-is-none]",
     ("0002-candidate/manifest.json", "outcome"), 10),
    ("a run without a traced boot is asked for in place of a trial", "user", 2, "not-a-trial",
     "test_trial_of_another_kind_is_asked_for", ("work/maps", "trials/0001-baseline"), 10),
    ("a trial whose timeline is asked for was changed", "bench", 4, "evidence-changed",
     "test_timeline_of_a_trial_that_changed", ("0002-candidate", "trace-guest-1.txt.gz"), 10),
    ("a folder holds no run", "user", 2, "not-a-run", "test_no_run", ("/work",), 10),
    ("one of two runs that are compared is damaged", "bench", 4, _BAD,
     "test_run_is_compared_with_one_that_is_damaged", ("bad/plan.json",), 10),
    ("a matrix is damaged", "bench", 4, _BAD, "test_matrix_is_damaged", ("run/matrix.json",), 10),
    ("a run of another scenario is taken up", "user", 2, "run-exists",
     "test_run_of_another_scenario_is_taken_up", ("work/run", "--out"), 20),
    ("a damaged run is taken up", "bench", 4, _BAD, "test_damaged_run_is_taken_up",
     ("run/plan.json",), 20),
    ("a killed run's record is empty", "nobody", 0, "", f"{_K}[empty]",
     ("cannot be read", ".unreadable"), 10),
    ("a killed run's record is cut", "nobody", 0, "", f"{_K}[cut]",
     ("cannot be read", ".unreadable"), 10),
    ("a killed run's record is rubbish", "nobody", 0, "", f"{_K}[rubbish]",
     ("cannot be read", ".unreadable"), 10),
    ("a killed run's record is of a newer barometer", "nobody", 0, "", f"{_K}[newer]",
     ("cannot be read", ".unreadable"), 10),
    ("a run's record names a folder of others", "nobody", 0, "",
     f"{_K}[names-a-folder-of-others]", ("cannot be read", ".unreadable"), 10),
    ("a run's record names shared memory of others", "nobody", 0, "",
     f"{_K}[names-shared-memory-of-others]", ("cannot be read", ".unreadable"), 10),
    ("a run's record names a trial of others", "nobody", 0, "", f"{_K}[names-a-trial-of-others]",
     ("cannot be read", ".unreadable"), 10),
    ("a run's record has no process", "nobody", 0, "", f"{_K}[has-no-process]",
     ("cannot be read", ".unreadable"), 10),
    ("a run's record is a folder", "nobody", 0, "", "test_record_is_a_folder",
     (".json", "Is a directory", "left alone"), 10),
    ("a run's record is a named pipe", "nobody", 0, "", "test_record_is_a_pipe",
     (".json", "plain file", "left alone"), 10),
    ("a run's record is of another machine", "nobody", 0, "", "test_record_of_somebody_else",
     ("elsewhere", "left alone"), 10),
    ("a killed run's private folder is a link", "nobody", 0, "",
     "test_private_folder_of_a_killed_run_is_a_link", ("cannot be removed",), 10),
) + _rows(
    "test_records.py",
    ("a file of the evidence is missing", "bench", 4, "evidence-changed", f"{_E}[missing]",
     ("guest-0/console.log is missing",), 20),
    ("a file of the evidence was emptied", "bench", 4, "evidence-changed", f"{_E}[empty]",
     ("guest-0/marks.txt changed",), 20),
    ("a file of the evidence was changed", "bench", 4, "evidence-changed", f"{_E}[changed]",
     ("host/hist-lookup.txt changed",), 20),
    ("a file of the evidence became a folder", "bench", 4, "evidence-changed",
     f"{_E}[is-a-folder]", ("host/dmesg.txt is missing",), 20),
    ("a file of the evidence became a named pipe", "bench", 4, "evidence-changed",
     f"{_E}[is-a-pipe]", ("host/dmesg.txt cannot be read",), 20),
    ("the marks are empty", "bench", 4, "no-mark", f"{_C}[marks-empty]", ("guest-0",), 20),
    ("a trace was collected cut", "bench", 4, _BAD, f"{_C}[trace-cut]", ("trace-guest-1.txt.gz",),
     20),
    ("a trace is rubbish", "bench", 4, "bad-trace", f"{_C}[trace-rubbish]", ("guest-1",), 20),
    ("a histogram is empty", "bench", 4, "bad-histogram", f"{_C}[histogram-empty]", ("lookup",),
     20),
    ("the samples of the maps are cut", "bench", 4, _BAD, f"{_C}[map-cut]", ("map.json",), 20),
    ("the tests' budgets are damaged", "user", 2, "", "test_record_of_the_tests[budget]",
     ("ci/budget.toml",), 10),
    ("the tests' groups are damaged", "user", 2, "", "test_record_of_the_tests[groups]",
     ("ci/groups.toml",), 10),
    ("the tests' proofs are damaged", "user", 2, "", "test_record_of_the_tests[proofs]",
     ("ci/proofs.toml", "restore"), 10),
    judged=True,
)  # fmt: skip

_D, _A = "test_cached_kernel", "test_cached_lists_of_the_mirror"
_AGAIN = ("is damaged", "building it again")
CACHES = _rows(
    "test_caches.py",
    ("a cached kernel is cut", "nobody", 3, _REACH, f"{_D}[truncated]", (*_AGAIN, "vmlinuz"), 20),
    ("a cached kernel was changed", "nobody", 3, _REACH, f"{_D}[changed]", (*_AGAIN, "vmlinuz"),
     20),
    ("a cached kernel became a folder", "nobody", 3, _REACH, f"{_D}[replaced-by-a-folder]",
     (*_AGAIN, "vmlinuz"), 20),
    ("a cached kernel lacks a module", "nobody", 3, _REACH, f"{_D}[module-gone]",
     (*_AGAIN, "ext4.ko is missing"), 20),
    ("a cache entry became a file", "nobody", 3, _REACH, f"{_D}[is-a-file]", _AGAIN, 20),
    ("a cache entry is a link that leads nowhere", "nobody", 3, _REACH, f"{_D}[is-a-link]",
     _AGAIN, 20),
    ("a cache entry's seal is cut", "nobody", 3, _REACH, f"{_D}[seal-cut]",
     (*_AGAIN, "entry.json"), 20),
    ("a cache entry's seal is nested without end", "nobody", 3, _REACH, f"{_D}[seal-is-deep]",
     (*_AGAIN, "entry.json"), 20),
    ("a cache entry's seal is a named pipe", "nobody", 3, _REACH, f"{_D}[seal-is-a-pipe]",
     (*_AGAIN, "entry.json"), 20),
    ("a cache entry's seal has another form", "nobody", 3, _REACH, f"{_D}[seal-is-a-list]",
     (*_AGAIN, "entry.json"), 20),
    ("a cache entry's seal lacks its sums", "nobody", 3, _REACH, f"{_D}[seal-lacks-sums]",
     (*_AGAIN, "entry.json"), 20),
    ("what was verified of a cache entry is rubbish", "nobody", 3, _REACH,
     f"{_D}[stamps-are-a-list]", ("BAROMETER_MIRROR",), 20),
    ("a cache entry is half-written", "nobody", 3, _REACH, f"{_D}[half-written]",
     ("BAROMETER_MIRROR",), 20),
    ("the answers that were remembered are cut", "nobody", 0, "", f"{_A}[answers-cut]",
     ("(1.0)",), 10),
    ("the answers that were remembered are nested without end", "nobody", 0, "",
     f"{_A}[answers-are-deep]", ("(1.0)",), 10),
    ("the answers that were remembered have another form", "nobody", 0, "",
     f"{_A}[answers-are-a-list]", ("(1.0)",), 10),
    ("apt's settings in the cache were changed", "nobody", 0, "", f"{_A}[settings-changed]",
     ("(1.0)",), 10),
    ("apt's lists in the cache are gone", "nobody", 0, "", f"{_A}[lists-gone]", ("(1.0)",), 10),
    ("apt's lists in the cache are rubbish", "nobody", 0, "", f"{_A}[lists-rubbish]", ("(1.0)",),
     10),
)  # fmt: skip

_N, _I = "test_program_of_a_run_is_missing", "test_image_builder"
_U = "test_module_cannot_be_unpacked"
PROGRAMS = _rows(
    "test_programs.py",
    ("there is no QEMU", "bench", 3, "qemu", f"{_N}[qemu]", ("QEMU", "qemu-system-x86"), 20),
    ("there is no mmdebstrap", "bench", 3, "programs", f"{_N}[mmdebstrap]",
     ("mmdebstrap", "apt-get install"), 20),
    ("there is no ssh", "bench", 3, "programs", f"{_N}[ssh]", ("ssh", "openssh-client"), 20),
    ("there is no python3", "bench", 3, "no-python", f"{_N}[python3]", ("python3",), 20),
    ("there is no mke2fs", "bench", 3, "programs", f"{_N}[mke2fs]", ("mke2fs", "e2fsprogs"), 20),
    ("there is no ssh for a metal host", "bench", 3, "program-missing",
     "test_ssh_is_missing_for_a_metal_host", ("ssh", "barometer doctor"), 10),
    ("there is no apt", "bench", 3, "program-missing", "test_apt_is_missing",
     ("apt-config", "barometer doctor"), 10),
    ("there is no git for a report", "nobody", 0, "", "test_git_is_missing_for_a_report",
     ("improved",), 20),
    ("there is no git for a bisection", "bench", 3, "program-missing",
     "test_git_is_missing_for_a_bisection", ("git", "barometer doctor"), 10),
    ("a repository is broken", "user", 2, "broken-repository", "test_repository_is_broken",
     ("work/linux",), 10),
    ("QEMU is too old", "bench", 3, "qemu", "test_qemu_is_too_old", ("7.2.9", "backports"), 20),
    ("git hangs", "nobody", 0, "", "test_git_hangs", ("improved",), 30),
    ("apt hangs", "bench", 3, _REACH, "test_apt_hangs", _URL, 20),
    ("ssh hangs", "bench", 3, "program-timeout", "test_ssh_hangs", ("ssh", "root@lab"), 20),
    ("the program that builds an image is killed", "bench", 3, "program-failed", f"{_I}[killed]",
     ("mmdebstrap", "SIGKILL"), 20),
    ("the program that builds an image fails", "bench", 3, "program-failed", f"{_I}[fails]",
     ("mmdebstrap", "no such luck", "7"), 20),
    ("the program that builds an image has no room", "bench", 3, "disk-full", f"{_I}[no-space]",
     ("image", "TMPDIR"), 20),
    ("depmod fails", "bench", 3, "program-failed", "test_depmod_fails", ("depmod", "broken"), 20),
    ("a program prints without end", "bench", 3, "output-flood",
     "test_program_prints_without_end", ("apt-config",), 20),
    ("there is no zstd", "bench", 3, "program-missing", f"{_U}[zst]", ("zstd", ".ko.zst"), 20),
    ("a module packed by xz is damaged", "bench", 3, "kernel-modules", f"{_U}[xz]", (".ko.xz",),
     20),
)  # fmt: skip

_STOP, _WORDS = "interrupted", ("interrupted", "was ended")
SIGNALS = _rows(
    "test_signals.py",
    ("a signal while the mirror hangs", "nobody", 130, _STOP, _L, _WORDS, 20),
    ("a signal while the mirror trickles", "nobody", 130, _STOP, "test_while_the_mirror_trickles",
     _WORDS, 20),
    ("a signal while an image is built", "nobody", 130, _STOP, "test_while_an_image_is_built",
     _WORDS, 30),
    ("a signal while a child does not heed any", "nobody", 130, _STOP,
     "test_while_a_child_does_not_heed_signals", _WORDS, 20),
    ("a signal while a run that is stopped has the cache", "nobody", 130, _STOP,
     "test_while_a_run_that_is_stopped_has_the_cache", ("waiting for another run", "/apt/trixie"),
     20),
    ("a second signal", "nobody", 130, _STOP, "test_second_signal", _WORDS, 30),
    ("a signal while a host's sshd says nothing", "nobody", 130, _STOP,
     "test_while_ssh_does_not_answer", _WORDS, 20),
    ("a signal while git hangs", "nobody", 130, _STOP, "test_while_the_tester_is_asked_for",
     _WORDS, 20),
    ("a signal before anything has begun", "nobody", 130, "", "test_before_anything_has_begun",
     (), 10),
    ("a signal that nohup ignores", "nobody", 3, _REACH, "test_signals_that_nohup_ignores", _URL,
     30),
    ("nobody reads standard output", "nobody", 141, "", "test_nobody_reads_the_output", (), 20),
    ("standard output is closed", "nobody", 0, "", "test_output_is_closed[stdout]", (), 10),
    ("standard error is closed", "nobody", 0, "", "test_output_is_closed[stderr]", (), 10),
) + _rows(
    "test_signals.py",
    ("a host's sshd says nothing", "bench", 3, "host-no-ssh", "test_ssh_does_not_answer",
     ("lab",), 60),
    ("a host's sshd trickles", "bench", 3, "host-no-ssh", "test_ssh_trickles", ("lab",), 60),
    ("nobody listens for ssh", "bench", 3, "host-no-ssh", "test_nobody_listens_for_ssh", ("lab",),
     10),
    ("what listens is no ssh server", "bench", 3, "host-no-ssh",
     "test_what_listens_is_no_ssh_server", ("lab",), 20),
    ("nobody reads standard error", "user", 2, "scenario", "test_nobody_reads_what_goes_wrong",
     (), 10),
    judged=True,
)  # fmt: skip

_J = "test_journal"
EVIDENCE = _rows(
    "test_evidence.py",
    ("a journal is cut off", "nobody", 0, "", f"{_J}[cut-off]", (), 10),
    ("a bit of a journal is flipped", "bench", 4, "", f"{_J}[flipped]",
     ("journal", "checksum", "set-aside"), 10),
    ("a journal is of a newer barometer", "bench", 4, "", f"{_J}[newer]",
     ("journal", "newer", "set-aside"), 10),
    ("a journal ends in zeroes", "bench", 4, "", f"{_J}[zeroes]",
     ("journal", "no JSON", "set-aside"), 10),
    ("a journal is a folder", "bench", 4, "", "test_journal_is_a_folder",
     ("journal", "set-aside"), 10),
    ("a journal is a named pipe", "bench", 4, "", "test_journal_is_a_pipe",
     ("journal", "set-aside"), 10),
    ("a machine with a damaged journal is to be changed", "bench", 3, "unfinished",
     "test_change_on_a_machine_with_a_damaged_journal", ("recover",), 10),
    ("a machine's lease is held", "bench", 3, "lease-held", "test_lease_is_held",
     ("nightly.toml", "process"), 10),
    ("a machine's lease is a newer barometer's", "bench", 3, "lease-held",
     "test_lease_is_of_a_newer_barometer", ("nightly.toml",), 10),
    ("a machine's lease is cut", "bench", 3, "lease-lost", "test_lease_is_cut", ("--out",), 10),
    ("a machine's lease is rubbish", "nobody", 0, "",
     "test_lease_is_rubbish_and_the_next_runner_puts_back", (), 10),
    ("a machine's lease was taken over", "bench", 3, "lease-lost", "test_lease_was_taken_over",
     ("again.toml",), 10),
    ("GRUB's environment is damaged", "bench", 3, "program-failed",
     "test_environment_of_grub_is_damaged", ("grub-reboot",), 10),
    ("a staged kernel is cut", "bench", 3, "wrong-image", "test_staged_kernel_is_cut",
     ("sha256",), 10),
    ("the record of a machine's own kernel is damaged", "bench", 3, "original-damaged",
     "test_record_of_the_original_kernel_is_damaged", ("original.json",), 10),
    ("a boot entry is left whose journal is lost", "nobody", 0, "",
     "test_boot_entry_of_a_run_whose_journal_is_lost", (), 10),
    ("the keeper's answer is rubbish", "bench", 3, "keeper-failed",
     "test_keepers_answer[rubbish]", ("python3",), 10),
    ("the keeper does not answer", "bench", 3, "keeper-failed", "test_keepers_answer[no]",
     ("python3", "127"), 10),
    ("the keeper's answer is cut", "bench", 3, "keeper-failed", "test_keepers_answer[cut]",
     ("python3",), 10),
    ("the keeper's answer is nested without end", "bench", 3, "keeper-failed",
     "test_keepers_answer[deep]", ("python3",), 10),
    ("anybody says the words of a panic", "nobody", 0, "", "test_marks[said-by-anybody]",
     ("improved",), 20),
    ("a mark is said again", "nobody", 0, "", "test_marks[again]", ("improved",), 20),
    ("the marks are cut", "nobody", 0, "", "test_marks[cut]", ("improved",), 20),
    ("a mark is missing", "bench", 4, "no-mark", "test_marks[missing]", ("guest-0",), 20),
    ("a mark is before the start", "bench", 4, "no-mark", "test_marks[before-the-start]",
     ("guest-0",), 20),
    judged=True,
)  # fmt: skip

ROWS = (*HOSTS, *FOLDERS, *MIRRORS, *RECORDS, *CACHES, *PROGRAMS, *SIGNALS, *EVIDENCE)
