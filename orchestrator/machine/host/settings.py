"""Settings of an arm on its host: written, and proven before anything is measured."""

from __future__ import annotations

import re
import shlex

from orchestrator.base.bounded import FACTS_BYTES
from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.manifest import ProvenSetting, ProvenSettings
from orchestrator.formats.abi import parse_selected
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.kernels.module.parameters import parameters_of
from orchestrator.machine.host.changes import ChangeLog
from orchestrator.machine.transport.shell import ConnectionLostError, Shell
from orchestrator.scenario.trials import Arm, Arms
from orchestrator.scenario.vocabulary import ArmName

_MISSING = 3
"""Exit code of the scripts below if there is no such file."""
_BOOLS = {"y": "1", "yes": "1", "on": "1", "true": "1", "n": "0", "no": "0", "off": "0",
          "false": "0"}  # fmt: skip
_NUMBER = re.compile(r"([+-]?)(0x[0-9a-f]+|[0-9]+)")


def write_settings(change: ChangeLog, arm: Arm, name: ArmName) -> None:
    """Write the arm's files under /sys and /proc/sys, in order. Raises BenchError if the kernel
    refuses a value."""
    for path, value in arm.sysfs.items():
        try:
            change.write(path, value)
        except ConnectionLostError:
            raise
        except BenchError as exc:
            raise _refused(name, path, value, exc.evidence or exc.message) from exc


def prove_settings(
    shell: Shell, kernel: KernelBundle, arms: Arms, name: ArmName
) -> ProvenSettings:
    """Read back all settings of the arm. Settings that only the other arm has are read, too, so
    that the difference is known.

    Raises BenchError if a setting is not as the arm requests it.
    """
    arm, other = arms[name], _other_arm(arms, name)
    cmdline = _prove_cmdline(shell, name, arm)
    parameters = {
        parameter: ProvenSetting(
            asked=value, found=_prove_parameter(shell, kernel, name, parameter, value)
        )
        for parameter, value in _with_others(arm.parameters, other.parameters).items()
    }
    sysfs = {
        path: ProvenSetting(asked=value, found=_prove_file(shell, name, path, value))
        for path, value in _with_others(arm.sysfs, other.sysfs).items()
    }
    unreadable = tuple(p for p in arm.parameters if parameters[p].found is None)
    return ProvenSettings(
        cmdline=cmdline, parameters=parameters, sysfs=sysfs, unreadable=unreadable
    )


def is_same_setting(requested: str, actual: str) -> bool:
    """True if both spell the same value: Y and 1, or 0x10 and 16."""
    return requested == actual or _normalise(requested) == _normalise(actual)


def _normalise(value: str) -> str | int:
    """Return a number as the kernel's kstrtol() reads it with base 0, a bool as 0 or 1."""
    text = _BOOLS.get(value.lower(), value.lower())
    match = _NUMBER.fullmatch(text)
    if match is None:
        return value
    octal = len(match[2]) > 1 and match[2][0] == "0" and match[2][1] != "x"
    try:
        number = int(match[2], 8 if octal else 0)
    except ValueError:  # 09
        return value
    return -number if match[1] == "-" else number


def _other_arm(arms: Arms, name: ArmName) -> Arm:
    return arms["baseline" if name == "candidate" else "candidate"]


def _with_others(own: dict[str, str], others: dict[str, str]) -> dict[str, str | None]:
    return {**dict.fromkeys(others), **own}


def _prove_cmdline(shell: Shell, name: ArmName, arm: Arm) -> ProvenSetting:
    """Prove the arm's words except its parameters, which are proven separately."""
    present = shell.read("/proc/cmdline").split()
    for word in arm.words:
        if word not in present:
            raise _refused(name, "/proc/cmdline", word, " ".join(present))
    # print_unknown_bootoptions() in init/main.c; /proc/cmdline has unknown words, too
    dmesg = shell.run("dmesg | grep -F 'Unknown kernel command line parameters'", check=False)
    unknown = dmesg.stdout.replace('"', " ").replace(",", " ").split()
    for word in arm.words:
        if word in unknown:
            raise _refused(
                name, "the kernel's command line", word, "the kernel knows no such word"
            )
    found = " ".join(word for word in arm.cmdline.split() if word in present)
    return ProvenSetting(asked=arm.cmdline, found=found)


def _prove_parameter(
    shell: Shell, kernel: KernelBundle, arm: ArmName, name: str, requested: str | None
) -> str | None:
    """Prove a parameter and return its value; None if the kernel does not show it."""
    module, _, parameter = name.replace("-", "_").partition(".")
    path = f"/sys/module/{module}/parameters/{parameter}"
    actual, why = _read(shell, path)
    if actual is None:
        if requested is not None and not _is_hidden(shell, kernel, module, parameter):
            raise _refused(arm, path, requested, why)
        return None
    if requested is not None and not is_same_setting(requested, actual):
        raise _refused(arm, path, requested, actual)
    return actual


def _is_hidden(shell: Shell, kernel: KernelBundle, module: str, parameter: str) -> bool:
    """True if the module is loaded or built in and has that parameter: then only the parameter's
    file is missing or cannot be read."""
    loaded = shell.run(["test", "-d", f"/sys/module/{module}"], check=False).code == 0
    parameters = parameters_of(kernel, module)
    return (
        (loaded or kernel.is_built_in(module))
        and parameters is not None
        and parameter in parameters
    )


def _prove_file(shell: Shell, arm: ArmName, path: str, requested: str | None) -> str | None:
    actual, why = _read(shell, path)
    if requested is not None and (actual is None or not is_same_setting(requested, actual)):
        raise _refused(arm, path, requested, why if actual is None else actual)
    return actual


def _read(shell: Shell, path: str) -> tuple[str | None, str]:
    """Return the value in a file, or None and the reason."""
    quoted = shlex.quote(path)
    completed = shell.run(
        f"[ -e {quoted} ] || exit {_MISSING}; cat {quoted}", check=False, limit=FACTS_BYTES
    )
    if completed.code == _MISSING:
        return None, "no such file"
    if completed.code:
        return None, f"it cannot be read ({completed.stderr.strip()})"
    return parse_selected(completed.stdout.strip()), ""


def _refused(arm: ArmName, where: str, requested: str, actual: str) -> BenchError:
    return BenchError(
        f"the {arm} is not set as it was asked to be: {where} was to have {requested}",
        evidence=f"{where}: {actual or 'empty'}",
        hint="nothing is measured under a setting that did not take: take it out, or give what the"
        " kernel accepts there",
        reason=Reason.SETTING_REFUSED,
    )
