"""Entry point of the command: exceptions become exit codes here and nowhere else.

0 expectation met   1 not met   2 scenario or command line wrong   3 the bench failed
4 evidence invalid or inconclusive   70 a bug in barometer   130 interrupted
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from orchestrator.base import interrupts
from orchestrator.base.errors import BarometerError, BenchError, ScenarioError
from orchestrator.base.installed import missing_extra_explained
from orchestrator.base.printable import escape_unprintable
from orchestrator.base.reasons import Reason
from orchestrator.cli import machine, measure, read
from orchestrator.cli.explain import explain_name
from orchestrator.cli.history import history
from orchestrator.cli.nightly import nightly
from orchestrator.cli.streams import guard_streams

# UsageError of the click that typer bundles, which is not always the installed one.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

_OF_A_PATH = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EEXIST,
)  # fmt: skip
"""Errors that mean that a path from the user is wrong, wherever they occur."""

_TASKS = {
    "Compare two host kernels": ("ab", "init", "plan", "run", "bisect"),
    "Read what was measured": ("report", "compare", "timeline", "bundle"),
    "Explain the slow boot of a VM": ("profile", "doctor"),
    "Look after machines": ("shell", "recover", "clean"),
    "Measure every night": ("nightly", "history"),
    "Look things up": ("explain", "schema"),
}


class _ByTask(TyperGroup):
    """The verbs, by what people want to do."""

    def format_commands(self, _ctx: Any, formatter: Any) -> None:
        """Write the commands; the types are those of the click that typer bundles."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for task, verbs in _TASKS.items():
            with formatter.section(task):
                formatter.write_dl([
                    (verb, self.commands[verb].get_short_help_str(width)) for verb in verbs
                ])  # fmt: skip


_COMPLETE = "_BAROMETER_COMPLETE"
"""Variable by which a shell asks for completions."""

app = typer.Typer(
    cls=_ByTask,
    name="barometer",
    help="What does this host kernel cost a guest that owns a device with a huge PCI BAR?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: to import Rich takes longer than all else that help needs.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "init": (measure.init, "nightly gpu1.toml"),
    "plan": (measure.plan, "small.toml --set device.bar=4GiB"),
    "run": (measure.run_scenario, "small.toml --pairs 3"),
    "ab": (
        measure.ab, "--base deb:linux-image-cloud-amd64@trixie-backports --series fix.mbox",
    ),
    "bisect": (measure.bisect, "--tree ~/linux --good v6.14 --bad v6.15 -- drivers/vfio"),
    "report": (read.report, "runs/small-20261201-080000 --mail"),
    "compare": (read.compare_saved_runs, "runs/monday runs/tuesday --arm candidate"),
    "timeline": (read.timeline, "runs/small-20261201-080000/trials/0001-baseline"),
    "bundle": (read.bundle, "runs/small-20261201-080000 --out regression.bundle.tar.gz"),
    "profile": (machine.profile, "win11 --connect qemu+ssh://root@gpu1/system --reboot"),
    "explain": (explain_name, "device.bar"),
    "schema": (read.schema, "> scenario.schema.json"),
    "shell": (machine.shell, "small.toml --arm candidate"),
    "recover": (machine.recover, "root@gpu1"),
    "doctor": (machine.doctor, "--host root@gpu1"),
    "clean": (machine.clean, ""),
    "nightly": (nightly, "gpu.toml --dir /var/lib/nights --limit 5h"),
}  # fmt: skip
"""Name of a verb -> its function, and what an example adds to the name."""
for _name, (_verb, _example) in _VERBS.items():
    app.command(_name, epilog=f"Example: barometer {_name} {_example}".rstrip())(_verb)
app.add_typer(history, name="history")


def _print_version(value: bool) -> None:
    if value:
        from orchestrator import __version__

        print(f"barometer {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def _check_folder() -> None:
    """Raise ScenarioError if the current folder was removed: relative paths then lead nowhere."""
    try:
        Path.cwd()
    except FileNotFoundError as exc:
        raise ScenarioError(
            "the current folder was removed", hint="change to one that exists", reason=Reason.PATH
        ) from exc


def _make_no_space_error(exc: OSError) -> BarometerError:
    """Return the error for a full disk: that of the file in `exc`, else that of a folder to which
    every run writes, else that of standard output."""
    from orchestrator.base.cache import disk_full
    from orchestrator.run.diskspace import find_full_places

    if (place := exc.filename or next(iter(find_full_places()), None)) is not None:
        return disk_full(Path(place))
    _drop_output()
    return BenchError(f"standard output: {exc.strerror}", reason=Reason.DISK_FULL)


def _drop_output() -> None:
    """Send the rest of the output to /dev/null. Python would try to write it again at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the command of this process."""
    interrupts.install()
    guard_streams()
    code = run_verb()
    interrupts.settle()
    sys.exit(code)


def run_verb() -> int:
    """Run the verb that sys.argv names, and return its exit code."""

    def say(text: str, reason: Reason) -> None:
        """Print on standard error. The last line is for scripts."""
        if sys.stderr is not None:  # it is None if it was closed from the beginning
            with contextlib.suppress(OSError):  # nobody reads it: the exit code still tells
                shown = escape_unprintable(f"barometer: {text}\nreason: {reason}")
                print(shown, file=sys.stderr, flush=True)

    def fail(exc: BarometerError) -> int:
        say(f"error: {exc}", exc.reason)
        return exc.exit_code

    def report_interrupt(by: str = "") -> int:
        say(f"interrupted{by}; what it started was ended, or is named above", Reason.INTERRUPTED)
        return interrupts.EXIT_CODE

    def report_bug() -> int:
        """Report a bug. After an interrupt, report the interrupt instead: KeyboardInterrupt within
        a wait can break Python's own code."""
        if interrupts.is_requested():
            logging.getLogger("barometer").debug("%s", traceback.format_exc())
            return report_interrupt()
        say("this is a bug in barometer:\n" + traceback.format_exc().rstrip(), Reason.BUG)
        return 70

    try:
        with missing_extra_explained():
            return _invoke()
    except BarometerError as exc:
        return fail(exc)
    except _UsageError as exc:
        if message := exc.format_message():  # without arguments, the help was printed instead
            say(f"error: {message}", Reason.COMMAND_LINE)
        return ScenarioError.exit_code
    except (KeyboardInterrupt, typer.Abort) as exc:
        return report_interrupt(f" by {exc}" if str(exc) else "")
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return fail(_make_no_space_error(exc))
        if exc.filename is None or exc.errno not in _OF_A_PATH:
            return report_bug()
        say(f"error: {exc.filename}: {exc.strerror}", Reason.PATH)
        return ScenarioError.exit_code
    except Exception:  # noqa: BLE001  # the last resort: a bug, reported as one
        return report_bug()


def _invoke() -> int:
    """Run a command to the end of its output and return its exit code. This does not call app(),
    which has exit codes of its own for an interrupt and a closed pipe."""
    command, code = typer.main.get_command(app), 0
    if _COMPLETE in os.environ:  # a shell asks what may come next
        command.main(prog_name="barometer", complete_var=_COMPLETE)
    try:
        with command.make_context("barometer", sys.argv[1:]) as context:
            _check_folder()
            command.invoke(context)
    except typer.Exit as exc:
        code = exc.exit_code
    if sys.stdout is not None:  # it is None if it was closed from the beginning
        sys.stdout.flush()
    return code
