"""The command line: a function for each verb, in a file for each kind of reader. A verb imports
what it needs when it runs, so that help is quick.

    measure.py    who compares kernels: plan, run, ab, bisect
    read.py       who reads runs: report, compare, timeline, schema
    machine.py    who keeps machines: profile, recover, doctor, clean
    nightly.py    who owns a lab's nights: nightly
    history.py    who follows many runs: history add, list, show, trend, export, prune
"""

from orchestrator.cli.entry import app, main

__all__ = ["app", "main"]
