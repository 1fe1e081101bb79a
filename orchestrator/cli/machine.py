"""Verbs for who keeps machines: profile, recover, doctor, clean."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.cli.measure import load_cells
from orchestrator.cli.options import AsJson, CellNames, Overrides, SshConfig, Verbose
from orchestrator.cli.output import print_json, set_logging
from orchestrator.scenario.choices import QUIET_SECONDS

if TYPE_CHECKING:
    from orchestrator.scenario.machines import MetalHost

MOST_COMPARED = 2
"""Most profiles that `--from` takes."""


def profile(
    domain: Annotated[
        str | None, typer.Argument(help="Name of a libvirt domain with a device passed through.")
    ] = None,
    connect: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="qemu:///system or qemu+ssh://HOST/system (default: virsh's)."
        ),
    ] = None,
    ssh_config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Configuration for ssh -F, if the URI is qemu+ssh."),
    ] = None,
    reboot: Annotated[
        bool, typer.Option("--reboot", help="Let the guest of a running domain reboot.")
    ] = False,
    until: Annotated[
        str,
        typer.Option(
            metavar="SECONDS|agent",
            help="End of the boot: seconds without a map or a line on a serial port, or agent: the"
            " guest agent connects.",
        ),
    ] = f"{QUIET_SECONDS:g}",
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the trace and the facts there.")
    ] = None,
    wait_for_qemu: Annotated[
        bool,
        typer.Option(
            "--wait-for-qemu", help="Record the next QEMU that opens VFIO, whoever starts it."
        ),
    ] = False,
    name: Annotated[
        str,
        typer.Option(metavar="PATTERN", help="With --wait-for-qemu: in its command line."),
    ] = "",
    script: Annotated[
        bool,
        typer.Option("--script", help="Print a shell program that collects a profile elsewhere."),
    ] = False,
    saved: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="FILE|DIR",
            help="Show a profile that was saved or collected; two are compared.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page for the browser.")
    ] = None,
    perfetto: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a trace for ui.perfetto.dev."),
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove the probes that a killed profile left.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Boot an existing libvirt domain once, under the probes. Shows where the time goes and what
    would help."""
    set_logging(verbose)
    from orchestrator.base.progress import Progress

    _check_one_source(domain, wait=wait_for_qemu, script=script, saved=saved, clear=clear)
    if script:
        from orchestrator.machine.tracing.collecting import collecting_script

        seconds = _parse_until(until)
        if seconds == "agent":
            raise ScenarioError(
                "--script --until agent: nothing there knows the agent",
                reason=Reason.COMMAND_LINE,
            )
        print(collecting_script(seconds), end="")
        return
    if saved:
        from orchestrator.cli.profiles import show_profiles
        from orchestrator.evidence.surveys.collected import load_evidence

        with Progress().task("profile"):
            recorded = [load_evidence(path.absolute()) for path in saved]
        show_profiles(recorded, as_json=as_json, html=html, perfetto=perfetto)
        return
    from orchestrator.run.profile import (
        ProfileRequest,
        WaitRequest,
        clear_profile,
        record,
        record_next,
    )

    if clear:
        with Progress().task("profile --clear"):
            clear_profile(connect, ssh_config)
        return
    from orchestrator.cli.profiles import show_profiles

    with Progress().task("profile") as progress:
        if wait_for_qemu:
            quiet = _parse_until(until)
            if quiet == "agent":
                raise ScenarioError(
                    "--wait-for-qemu --until agent: only libvirt knows the agent",
                    reason=Reason.COMMAND_LINE,
                )
            evidence = record_next(WaitRequest(name, connect, ssh_config, quiet), progress)
        else:
            request = ProfileRequest(
                domain or "", connect, ssh_config, reboot, _parse_until(until)
            )
            evidence = record(request, progress)
        if save is not None:
            evidence.save(save)
    show_profiles([evidence], as_json=as_json, html=html, perfetto=perfetto)


def _check_one_source(
    domain: str | None, *, wait: bool, script: bool, saved: list[Path] | None, clear: bool
) -> None:
    """Raise ScenarioError unless the command line names one thing to do."""
    named = {
        "DOMAIN": domain is not None, "--wait-for-qemu": wait, "--script": script,
        "--from": bool(saved), "--clear": clear,
    }  # fmt: skip
    given = [option for option, is_given in named.items() if is_given]
    if given == ["DOMAIN", "--clear"]:
        return
    if not given:
        raise ScenarioError(
            "profile: no DOMAIN is given",
            hint="virsh list --all names them; --wait-for-qemu takes the next QEMU",
            reason=Reason.COMMAND_LINE,
        )
    if len(given) > 1:
        raise ScenarioError(
            f"profile: {' and '.join(given)} exclude one another", reason=Reason.COMMAND_LINE
        )
    if saved and len(saved) > MOST_COMPARED:
        raise ScenarioError(
            f"profile: {len(saved)} profiles are given; two can be compared",
            reason=Reason.COMMAND_LINE,
        )


def _parse_until(text: str) -> float | Literal["agent"]:
    """Parse the value of --until. Raises ScenarioError."""
    if text == "agent":
        return "agent"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ScenarioError(
            f"--until {text}: expected a number of seconds above 0, or agent",
            reason=Reason.COMMAND_LINE,
        )
    return seconds


def recover(
    host: Annotated[
        str,
        typer.Argument(metavar="HOST", help="SSH address of the machine, or a scenario file."),
    ],
    ssh_config: SshConfig = None,
    deadline: Annotated[
        int | None,
        typer.Option(
            min=180, help="Seconds within which the machine answers after a boot (default: 600)."
        ),
    ] = None,
    wait: Annotated[
        int, typer.Option(min=0, help="Seconds to wait for the lease of a runner that is gone.")
    ] = 120,
    keep_kernel: Annotated[
        bool,
        typer.Option("--keep-kernel", help="Take the running kernel for the machine's own."),
    ] = False,
    power_cycle: Annotated[
        bool,
        typer.Option(
            "--power-cycle",
            help="Cut the machine's power if it does not answer. Somebody else may be using it.",
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Put a metal host back as it was before a killed run. It ends on its own kernel."""
    set_logging(verbose)
    from orchestrator.base.progress import Progress
    from orchestrator.machine.metal.leasing import recover_machine
    from orchestrator.machine.runner.state import bench_state

    spec = _load_metal_host(host, ssh_config, deadline, wait)
    if power_cycle and spec.power_cycle is None:
        raise ScenarioError(
            "--power-cycle: HOST must be a scenario file with host.power_cycle",
            reason=Reason.COMMAND_LINE,
        )
    with Progress().task(f"recover {spec.address}") as progress, bench_state() as state:
        was_changed = recover_machine(
            spec, state.folder / "metal", progress, keep_kernel=keep_kernel,
            power_cycle=power_cycle,
        )  # fmt: skip
    print(f"{spec.address}: " + ("put back as it was" if was_changed else "nothing to recover"))


def _load_metal_host(
    host: str, ssh_config: Path | None, deadline: int | None, wait: int
) -> MetalHost:
    """Return the metal host at an SSH address, or of a scenario file with its power and console
    settings."""
    from pydantic import ValidationError

    from orchestrator.scenario.factors import load_scenarios
    from orchestrator.scenario.machines import MetalHost

    if host.endswith(".toml"):
        if ssh_config is not None:
            raise ScenarioError(
                f"--ssh-config: not for a scenario file: {host} has its own host.ssh_config",
                reason=Reason.COMMAND_LINE,
            )
        hosts = [cell.scenario.host for cell in load_scenarios(Path(host)).cells]
        machines = {each.address: each for each in hosts if isinstance(each, MetalHost)}
        if not machines:
            raise ScenarioError(
                f'{host}: host.kind is "{hosts[0].kind}", and there is nothing to put back',
                reason=Reason.COMMAND_LINE,
            )
        if len(machines) > 1:
            raise ScenarioError(
                f"{host}: its cells have {len(machines)} machines",
                hint="; ".join(f"barometer recover {address}" for address in machines),
                reason=Reason.COMMAND_LINE,
            )
        options = {"wait": wait} | ({"deadline": deadline} if deadline is not None else {})
        return next(iter(machines.values())).model_copy(update=options)
    try:
        return MetalHost(
            kind="metal", address=host, ssh_config=ssh_config, deadline=deadline or 600, wait=wait
        )
    except ValidationError as exc:
        raise ScenarioError(
            f"{host}: {exc.errors()[0]['msg'].removeprefix('Value error, ')}",
            reason=Reason.COMMAND_LINE,
        ) from exc


def doctor(
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="SSH address of a machine (default: this machine)."),
    ] = None,
    ssh_config: SshConfig = None,
    scenario: Annotated[
        Path | None,
        typer.Option(help="Scenario to check the machine for; with a matrix, name a --cell."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Make one small map of a device on vfio-pci, and count it."),
    ] = False,
    overrides: Overrides = None,
    names: CellNames = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Report what a machine can do and what is in the way. Looks at this machine or at HOST, and
    changes nothing."""
    set_logging(verbose)
    from orchestrator.base.cache import Cache
    from orchestrator.base.progress import Progress
    from orchestrator.report.text.doctor_text import json_diagnosis, text_diagnosis
    from orchestrator.run.doctor import diagnose

    chosen = None
    if scenario is not None:
        _, cells = load_cells(scenario, overrides, None, names)
        if len(cells) > 1:
            raise ScenarioError(
                f"--scenario {scenario}: its matrix has {len(cells)} cells",
                hint=f"name one: --cell {cells[0].name}", reason=Reason.SCENARIO,
            )  # fmt: skip
        chosen = cells[0].scenario
    with Progress().task("doctor"):
        diagnosis = diagnose(chosen, host, ssh_config, Cache(), probe=probe)
    if as_json:
        print_json(json_diagnosis(diagnosis))
    else:
        print(text_diagnosis(diagnosis), end="")
    raise typer.Exit(diagnosis.exit_code)


def shell(
    place: Annotated[
        Path, typer.Argument(metavar="SCENARIO|RUN", help="Scenario file, or folder of a run.")
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND]", help="What to run (default: a login shell)."),
    ] = None,
    arm: Annotated[
        Literal["baseline", "candidate"], typer.Option(help="The arm whose host boots.")
    ] = "candidate",
    guest: Annotated[bool, typer.Option("--guest", help="Boot its guest, too; go there.")] = False,
    gdb: Annotated[
        bool, typer.Option("--gdb", help="Let gdb debug the host's kernel, and tell how.")
    ] = False,
    overrides: Overrides = None,
    names: CellNames = None,
    verbose: Verbose = False,
) -> None:
    """Boot a host as for a trial, and give you a shell on it. Leaving the shell ends the host;
    nothing is left."""
    set_logging(verbose)
    from orchestrator.base.progress import Progress
    from orchestrator.run.visiting import choose_cell, load_place, visit_host

    cell = choose_cell(load_place(place, overrides or []), names or [])
    words = command or []
    # as ssh(1): one word is a script for the shell
    script = words[0] if len(words) == 1 else shlex.join(words)
    code = visit_host(
        cell.scenario, cell.text, arm, script, on_guest=guest, gdb=gdb,
        progress=Progress(),
    )  # fmt: skip
    raise typer.Exit(code)


def clean(as_json: AsJson = False) -> None:
    """End and remove what killed runs left on this machine. All else is left alone."""
    from orchestrator.base.cache import Cache
    from orchestrator.base.progress import Progress
    from orchestrator.machine.runner.state import clean_killed_runs

    with Progress().task("clean"):
        lines = [*clean_killed_runs(), *(f"removed {path}" for path in Cache().sweep())]
    if as_json:
        print_json({"schema": 1, "done": lines})
        return
    for line in lines or ["nothing to clean"]:
        print(line)
