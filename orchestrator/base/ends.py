"""What an error ends, by its reason: a command with one of its exit codes, or a trial."""

from __future__ import annotations

from enum import Flag, auto


class Ends(Flag):
    """What an error with a reason ends."""

    INPUT = auto()
    """A command, because its arguments or files are wrong: exit code 2 (ScenarioError)."""
    BENCH = auto()
    """A command, because the bench failed: exit code 3 (BenchError)."""
    EVIDENCE = auto()
    """A command that judges: exit code 4 (EvidenceError). A trial that is judged is invalid."""
    LEFT = auto()
    """`recover`, because something is left on the machine: exit code 4 (LeftError)."""
    BUG = auto()
    """A command, by an exception that is no BarometerError: exit code 70."""
    INTERRUPT = auto()
    """A command that was interrupted: exit code 130."""
    TRIAL = auto()
    """A trial while it is made. Any class of error; `faults.py` charges it."""


EXIT_CODES = {
    Ends.INPUT: 2,
    Ends.BENCH: 3,
    Ends.EVIDENCE: 4,
    Ends.LEFT: 4,
    Ends.BUG: 70,
    Ends.INTERRUPT: 130,
}
"""Exit code of a command that an error ends."""
