"""Find the parameters that a kernel's modules take, in the modules themselves."""

from __future__ import annotations

import difflib

from orchestrator.base.errors import ScenarioError
from orchestrator.base.process import run
from orchestrator.base.reasons import Reason
from orchestrator.base.spelling import nearest_name
from orchestrator.kernels.image.bundle import KernelBundle

_FIELDS = ("parm", "parmtype")
"""Fields of modinfo(8): a parameter has the first if it is described, the second if declared."""


def check_parameter(kernel: KernelBundle, name: str) -> None:
    """Raise ScenarioError with the nearest name if the kernel has no such module, or if the module
    has no such parameter. `name` is MODULE.PARAMETER."""
    module, _, parameter = name.replace("-", "_").partition(".")
    if not kernel.has_module(module):
        near = difflib.get_close_matches(module, kernel.module_names(), 1, 0.75)
        raise ScenarioError(
            f"the kernel {kernel.release} has no module {module}"
            + (f'; did you mean "{near[0]}.{parameter}"?' if near else ""),
            hint="if it is a parameter of the kernel itself, not of a module, set it with cmdline",
            reason=Reason.NO_SUCH_PARAMETER,
        )
    known = parameters_of(kernel, module)
    if known is None or parameter in known:
        return
    names = sorted(f"{module}.{other}" for other in known)
    raise ScenarioError(
        f"{module} of the kernel {kernel.release} has no parameter {parameter}"
        + (nearest_name(f"{module}.{parameter}", names, names) if names else ", and no other"),
        reason=Reason.NO_SUCH_PARAMETER,
    )


def parameters_of(kernel: KernelBundle, module: str) -> set[str] | None:
    """Return the names of a module's parameters. They are unknown (None) if the module is built
    into a kernel without modules.builtin.modinfo. Raises BenchError if there is no modinfo(8)."""
    file = kernel.module_file(module)
    if file is None:
        return _built_in(kernel, module)
    names = set()
    for field in _FIELDS:
        modinfo = run(["/sbin/modinfo", "-0", "-F", field, file], doing=f"parameters of {module}")
        names |= {line.partition(":")[0].strip() for line in modinfo.stdout.split("\0")}
    return names - {""}


def _built_in(kernel: KernelBundle, module: str) -> set[str] | None:
    """Read the names from entries `MODULE.parm=NAME:TEXT`, which are NUL-separated
    (Documentation/kbuild/kbuild.rst)."""
    file = kernel.modules / "modules.builtin.modinfo"
    if not file.exists():
        return None
    starts = tuple(f"{module}.{field}=" for field in _FIELDS)
    entries = file.read_bytes().decode(errors="replace").split("\0")
    return {
        entry.partition("=")[2].partition(":")[0] for entry in entries if entry.startswith(starts)
    }
