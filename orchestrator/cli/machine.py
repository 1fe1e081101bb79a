"""Verbs for who keeps machines: profile, recover, doctor, clean."""

from __future__ import annotations

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


def profile(
    domain: Annotated[
        str | None, typer.Argument(help="Name of a libvirt domain with a device passed through.")
    ] = None,
    connect: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="qemu:///system or qemu+ssh://HOST/system (default: as virsh)."
        ),
    ] = None,
    ssh_config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Configuration for ssh -F, with a qemu+ssh URI."),
    ] = None,
    reboot: Annotated[
        bool, typer.Option("--reboot", help="Let the guest of a running domain reboot.")
    ] = False,
    until: Annotated[
        str,
        typer.Option(
            metavar="SECONDS|agent",
            help="The boot is over after so long without a map or a line on a serial port, or when"
            " the guest agent connects.",
        ),
    ] = f"{QUIET_SECONDS:g}",
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the trace and the facts there.")
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
    from orchestrator.analysis.diagnosis.diagnosis import analyse_profile
    from orchestrator.base.progress import Progress
    from orchestrator.report.text.profile_text import profile_json, text_profile
    from orchestrator.run.profile import ProfileRequest, record
    from orchestrator.run.profile import clear as clear_profile

    if clear:
        with Progress().task("profile --clear"):
            clear_profile(connect, ssh_config)
        return
    if domain is None:
        raise ScenarioError(
            "profile: no DOMAIN is given",
            hint="virsh list --all names them",
            reason=Reason.COMMAND_LINE,
        )
    request = ProfileRequest(domain, connect, ssh_config, reboot, _parse_until(until))
    with Progress().task("profile") as progress:
        recorded = record(request, progress)
        if save is not None:
            recorded.save(save)
        found = analyse_profile(recorded.facts, recorded.files, recorded.xml)
    if as_json:
        print_json(profile_json(found))
    else:
        print(text_profile(found), end="")


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
            f"--until {text}: neither seconds above 0 nor the word agent",
            reason=Reason.COMMAND_LINE,
        )
    return seconds


def recover(
    host: Annotated[
        str,
        typer.Argument(metavar="HOST", help="The machine, as ssh knows it; or a scenario file."),
    ],
    ssh_config: SshConfig = None,
    deadline: Annotated[
        int | None,
        typer.Option(min=180, help="Seconds within which it is back after a boot (600)."),
    ] = None,
    wait: Annotated[
        int, typer.Option(min=0, help="Seconds to wait for the lease of a runner that is gone.")
    ] = 120,
    keep_kernel: Annotated[
        bool,
        typer.Option("--keep-kernel", help="The kernel that runs is the machine's own by now."),
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
    from orchestrator.machine.metal.leasing import recover_machine as recover_host
    from orchestrator.machine.runner.state import bench_state

    spec = _metal_host(host, ssh_config, deadline, wait)
    if power_cycle and spec.power_cycle is None:
        raise ScenarioError(
            "--power-cycle: only a scenario's host.power_cycle says how",
            reason=Reason.COMMAND_LINE,
        )
    with Progress().task(f"recover {spec.address}") as progress, bench_state() as state:
        was_changed = recover_host(
            spec, state.folder / "metal", progress, keep_kernel=keep_kernel,
            power_cycle=power_cycle,
        )  # fmt: skip
    print(f"{spec.address}: " + ("put back as it was" if was_changed else "nothing to recover"))


def _metal_host(host: str, ssh_config: Path | None, deadline: int | None, wait: int) -> MetalHost:
    """Return the metal host at an SSH address, or of a scenario file with its power and console
    settings."""
    from pydantic import ValidationError

    from orchestrator.scenario.factors import load_scenarios
    from orchestrator.scenario.machines import MetalHost

    if host.endswith(".toml"):
        if ssh_config is not None:
            raise ScenarioError(
                f"--ssh-config: {host} says how its host is reached", reason=Reason.COMMAND_LINE
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
        given = {"wait": wait} | ({"deadline": deadline} if deadline is not None else {})
        return next(iter(machines.values())).model_copy(update=given)
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
        typer.Option(metavar="HOST", help="A machine, as ssh(1) takes it (default: this one)."),
    ] = None,
    ssh_config: SshConfig = None,
    scenario: Annotated[
        Path | None,
        typer.Option(help="Scenario file to check the machine for; of a matrix with --cell."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Count one small map of a device on vfio-pci.")
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

    wanted = None
    if scenario is not None:
        _, cells = load_cells(scenario, overrides, None, names)
        if len(cells) > 1:
            raise ScenarioError(
                f"--scenario {scenario}: its matrix has {len(cells)} cells",
                hint=f"name one: --cell {cells[0].name}", reason=Reason.SCENARIO,
            )  # fmt: skip
        wanted = cells[0].scenario
    with Progress().task("doctor"):
        diagnosis = diagnose(wanted, host, ssh_config, Cache(), probe=probe)
    if as_json:
        print_json(json_diagnosis(diagnosis))
    else:
        print(text_diagnosis(diagnosis), end="")
    raise typer.Exit(diagnosis.exit_code)


def clean(as_json: AsJson = False) -> None:
    """End and remove what killed runs left on this machine. All else is left alone."""
    from orchestrator.base.cache import Cache
    from orchestrator.base.progress import Progress
    from orchestrator.machine.runner.state import clean_killed_runs as clean_state

    with Progress().task("clean"):
        lines = [*clean_state(), *(f"removed {path}" for path in Cache().sweep())]
    if as_json:
        print_json({"schema": 1, "done": lines})
        return
    for line in lines or ["nothing to clean"]:
        print(line)
