"""Answer one request to the keeper: a JSON document on standard input, and one on standard output.

A refusal is {"refused": REASON, "message": TEXT, ...}. All verbs but `status`, `detect`, `busy`
and `acquire` need the `token` of a live lease; `renew`, `confirm` and `release` also accept the
token of an expired lease, as long as nobody else has taken the resources over.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from keeper import boot, deadman, leases, leftovers, machine, means
from keeper.changes import watchdog
from keeper.journaling import set_aside
from keeper.journaling.journal import Journal, left_aside
from keeper.last_words import last_words
from keeper.machine import RefusedError
from keeper.steps import KINDS, Steps, failure

Request = dict[str, Any]
Answer = dict[str, Any]
_ROOT_ONLY = "the keeper must run as root"
_STEPS = ("write", "modules", "bind", "claim", "link", "mount", "tracing", "guest")
_BY_NAME = "remove the boot entries that are named barometer-"
_LONGEST_SECONDS = 300.0
"""Longest time that a runner waits for an answer."""
_IDLE_SECONDS = 3600
"""Longest life of a lease without a sign of its runner (host.lease)."""


def status(_: Request) -> Answer:
    journal = Steps(0).journal
    return {
        "leases": [lease.facts() for lease in leases.leases()],
        "journal": [vars(entry) for entry in journal.entries],
        "unreadable": [vars(line) for line in journal.unreadable + left_aside()],
        "original": boot.known_original(),
        "boot_id": machine.boot_id(),
        "release": machine.release(),
        "version": machine.version(),
        "cmdline": machine.cmdline(),
        "uptime": float((machine.text("/proc/uptime") or "0").split()[0]),
    }


def detect(_: Request) -> Answer:
    return means.detect()


def busy(__: Request) -> Answer:
    """Return the seconds that the machine's CPUs have worked since its boot: proc_stat(5) without
    idle and iowait, and without the time of guests, which is in that of user. Stolen time counts:
    a hypervisor that gives no CPU does not make a machine idle."""
    line = (machine.text("/proc/stat") or "").partition("\n")[0]
    user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return {"seconds": ticks / os.sysconf("SC_CLK_TCK")}


def acquire(request: Request) -> Answer:
    """Grant a lease. `unfinished` is true if changes of an earlier run have to be put back before
    anything else."""
    journal = Steps(0).journal
    lease = leases.grant(
        request["resources"], request["owner"], request["ttl"], request["takeover"], journal
    )
    return {"token": lease.token, "unfinished": _is_unfinished(journal)}


def renew(request: Request) -> Answer:
    lease = leases.of_token(request["token"])
    lease.renew()
    return {"left": lease.left()}


def release(request: Request) -> Answer:
    """Give the lease back. With the last lease, everything that barometer has on the machine is
    removed."""
    lease = leases.of_token(request["token"])
    journal = Steps(lease.token).journal
    mine = [entry for entry in journal.entries if entry.token == lease.token]
    left = [entry.kind for entry in mine + leases.of_nobody(journal.entries)]
    if left := left + ["journal" for _ in journal.unreadable]:
        raise RefusedError(
            "unfinished", f"{len(left)} changes of the machine are not put back:"
            f" {', '.join(sorted({*left}))}",
        )  # fmt: skip
    if any(other.token != lease.token for other in leases.live()):
        lease.remove()
    else:
        set_aside.remove_all_but()
    return {}


def leased(
    act: Callable[[Steps, leases.Lease, Request], Answer],
    lease_of: Callable[[int], leases.Lease] = leases.the_live,
) -> Callable[[Request], Answer]:
    """Return a verb under a lease, which does not expire while the verb is at work."""

    def verb(request: Request) -> Answer:
        lease = lease_of(request["token"])
        with lease.kept(_LONGEST_SECONDS):
            return act(Steps(lease.token), lease, request)

    return verb


def confirm(steps: Steps, lease: leases.Lease, _: Request) -> Answer:
    """Record that the machine was reached after a boot. The lease, which was extended across the
    boot, gets its usual length again. `notes` in the answer is for the user."""
    lease.extend(lease.ttl)
    deadman.confirm(steps)
    armed = [entry.what for entry in steps.journal.entries if entry.kind == "watchdog"]
    return {"notes": [note for what in armed for note in _stopped(steps, what)]}


def _stopped(steps: Steps, what: dict[str, Any]) -> list[str]:
    """Stop a watchdog. If that fails, return the reason, because the watchdog may restart the
    machine."""
    try:
        if watchdog.found_again(what) is None and what["driver"]:
            steps.take("modules", names=[what["driver"]])
        watchdog.disarm(what)
    except (RefusedError, OSError) as exc:
        return [f"the watchdog may restart the machine: {exc}"]
    return []


def step(kind: str) -> Callable[[Request], Answer]:
    """Return a verb that makes one change of the kind `kind`."""

    def take(steps: Steps, _: leases.Lease, request: Request) -> Answer:
        _refuse_unfinished(steps)
        facts = {name: value for name, value in request.items() if name not in ("verb", "token")}
        return steps.take(kind, **facts)

    return leased(take)


def original(steps: Steps, _: leases.Lease, __: Request) -> Answer:
    _refuse_unfinished(steps)
    return boot.original(steps)


def install_deadman(steps: Steps, _: leases.Lease, request: Request) -> Answer:
    _refuse_unfinished(steps)
    deadman.install(steps, request["seconds"])
    return {}


def _refuse_unfinished(steps: Steps) -> None:
    """Raise RefusedError if changes of an earlier run are left on the machine."""
    if _is_unfinished(steps.journal):
        left = len(leases.of_nobody(steps.journal.entries)) + len(steps.journal.unreadable)
        raise RefusedError(
            "unfinished", f"{left} changes of a run before this one are not put back"
        )


def _is_unfinished(journal: Journal) -> bool:
    return bool(leases.of_nobody(journal.entries) or journal.unreadable)


def say_last_words(steps: Steps, _: leases.Lease, __: Request) -> Answer:
    return {"text": last_words(steps.journal)}


def put_back(steps: Steps, lease: leases.Lease, request: Request) -> Answer:
    """Put changes back as `Steps.put_back` does; with `volatile` only those that a boot would undo
    anyway. Changes under another live lease are left alone."""
    theirs = {other.token for other in leases.live()} - {lease.token}
    answer = steps.put_back(
        lambda entry: entry.token not in theirs and entry.kind != "kernel"
        and (KINDS[entry.kind].volatile or not request["volatile"])
    )  # fmt: skip
    if not request["volatile"]:
        done, failed = leftovers.remove(theirs)
        answer["done"] += done
        answer["failed"] += [failure("boot-entry", {}, why, _BY_NAME) for why in failed]
        try:
            boot.set_original_aside()
        except OSError as exc:
            answer["failed"].append(failure("original", {}, str(exc), f"remove {boot.ORIGINAL}"))
    return answer


def kernel_restored(steps: Steps, _: leases.Lease, request: Request) -> Answer:
    boot.kernel_restored(steps, keep=request.get("keep", False))
    return {}


VERBS: dict[str, Callable[[Request], Answer]] = {
    "status": status,
    "detect": detect,
    "busy": busy,
    "acquire": acquire,
    "renew": renew,
    "confirm": leased(confirm, leases.of_token),
    "release": release,
    **{kind: step(kind) for kind in _STEPS},
    "original": leased(original),
    "deadman": leased(install_deadman),
    "boot": leased(boot.boot),
    "last_words": leased(say_last_words),
    "putback": leased(put_back),
    "kernel_restored": leased(kernel_restored),
}


def answer(request: Request) -> Answer:
    try:
        if os.geteuid() != 0 and "BAROMETER_ROOT" not in os.environ:
            raise RefusedError("not-root", _ROOT_ONLY)
        # whoever has the lock may be what hangs
        with contextlib.nullcontext() if request["verb"] == "busy" else machine.locked():
            return VERBS[request["verb"]](request)
    except RefusedError as exc:
        return {"refused": exc.reason, "message": str(exc), **exc.facts}
    except OSError as exc:
        return {"refused": "os-error", "message": f"{exc.filename}: {exc.strerror}"}
    except (KeyError, TypeError, ValueError) as exc:
        return {"refused": "bad-request", "message": f"{type(exc).__name__}: {exc}"}


def stay() -> None:
    """Answer requests, a line of JSON each, until the input ends, or no request came for longer
    than any lease lasts without one."""
    signal.alarm(_IDLE_SECONDS)  # a runner that is gone may leave the connection open
    for line in sys.stdin:
        signal.alarm(0)
        print(json.dumps(answer(json.loads(line))), flush=True)
        signal.alarm(_IDLE_SECONDS)


def main() -> None:
    if "BAROMETER_ROOT" not in os.environ:  # the shell of an SSH session may lack these
        os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    if sys.argv[1:2] == ["deadman"]:
        deadman.watch(float(sys.argv[2]))
    elif sys.argv[1:2] == ["stay"]:
        stay()
    else:
        json.dump(answer(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
