"""What does this host kernel cost a guest that owns a device with a huge PCI BAR?

As a library (docs/library.md):

    load(RUN)             judge a saved run; nothing is written until `.save()`
    compare(base, ...)    measure two kernels, as `barometer ab` does
    Scenario              a scenario file's model

Each name is imported when it is first used, so that `import orchestrator` is quick and changes
nothing in the process.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Run", "Scenario", "TrialSample", "__version__", "compare", "load"]

if TYPE_CHECKING:
    from orchestrator.run.judging.judge import Run, TrialSample
    from orchestrator.run.library import compare, load
    from orchestrator.scenario.model import Scenario

    __version__: str
else:
    _MODULES = {
        "Run": "run.judging.judge", "TrialSample": "run.judging.judge",
        "Scenario": "scenario.model", "compare": "run.library", "load": "run.library",
    }  # fmt: skip

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            # imported only here: it takes longer than the help of the command line
            value = import_module("importlib.metadata").version("vfio-barometer")
        elif name in _MODULES:
            value = getattr(import_module(f"orchestrator.{_MODULES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
