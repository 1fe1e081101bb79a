"""Keep a machine that barometer did not make: leases on it, a journal of the changes to it, and
the way back. Plain Python 3 standard library; runs as root on the machine.

The keeper is sent as one zip archive with every request (orchestrator/machine/metal/keeper.py),
and installed only as the program of its dead man's switch. All that barometer keeps on the machine
is below STATE:

    lease-TOKEN.json   who may change the machine, and until when
    journal.jsonl      each change, written before it is made; each undo, written after it
    original.json      the kernel that the machine ran before the first change
    set-aside/         journals and records that could not be read, until somebody removes them
    keeper.pyz         this program, while a dead man's switch needs it

With BAROMETER_ROOT in the environment every absolute path is below that folder.
"""
