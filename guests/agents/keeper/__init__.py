"""Keep a machine that barometer did not make: leases on it, a journal of what was changed, and
the way back. Plain Python 3 standard library; runs as root on the machine.

Sent as one zip archive with every request (orchestrator/bench/keeper.py), and never installed but
as the program of its dead man's switch. All that barometer keeps there is below STATE:

    lease-TOKEN.json   who may change the machine, and until when
    journal.jsonl      each change, before it was made; each change put back, after
    original.json      the kernel that the machine ran before the first change
    set-aside/         journals and records that could not be read; kept until somebody removes it
    keeper.pyz         this program, while a dead man's switch needs it

With BAROMETER_ROOT in the environment every absolute path is below that folder.
"""
