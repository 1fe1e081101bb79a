"""What every test process needs of the process that it is."""

from __future__ import annotations

import signal

# A process that a non-interactive shell starts in the background ignores SIGINT, and so would
# every child: no test could interrupt one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
