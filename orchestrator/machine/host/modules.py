"""Modules of the kernel under test, on its host."""

from __future__ import annotations

from orchestrator.base.errors import BenchError
from orchestrator.base.process import tail
from orchestrator.base.reasons import Reason
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.transport.shell import Shell


def prove_modules(shell: Shell, kernel: KernelBundle) -> None:
    """Raise BenchError if the host has loaded, or would load, another module than the rebuilt one.
    No module is loaded for this check: the other arm would not have it."""
    for name, srcversion in kernel.swapped.items():
        answer = shell.run(
            f"cat /sys/module/{name}/srcversion || modinfo -F srcversion {name}", check=False
        )
        if answer.stdout.strip() != srcversion:
            raise BenchError(
                f"the host has another module {name} than was built for this arm: its srcversion"
                f" is {answer.stdout.strip() or 'not known'}, not {srcversion}",
                evidence=tail(answer.stderr), reason=Reason.WRONG_MODULE,
            )  # fmt: skip
