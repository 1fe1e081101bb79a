"""Set up the signals of every test process."""

from __future__ import annotations

import signal

# A shell starts a background process with SIGINT ignored, and nohup(1) any with SIGHUP ignored.
# Children inherit that, so that no test could interrupt one.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
