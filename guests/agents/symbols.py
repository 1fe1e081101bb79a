"""Name the kernel functions that addresses are in. Plain Python 3 standard library.

    symbols.py < ADDRESSES      hexadecimal, a line each

Prints a line for each: ADDRESS NAME OFFSET, the offset in hexadecimal; NAME is ? for an address in
no function (in a program of user space).
"""

from __future__ import annotations

import bisect
import sys

KERNEL = 1 << 63


def main() -> None:
    starts: dict[int, str] = {}
    with open("/proc/kallsyms") as table:
        for line in table:
            address, kind, name = line.split(None, 3)[:3]
            # if two names have one address, take the first: aliases follow
            if kind in "tTwW":
                starts.setdefault(int(address, 16), name)
    order = sorted(starts)
    for line in sys.stdin:
        asked = int(line, 16)
        at = bisect.bisect_right(order, asked) - 1
        name = starts[order[at]] if at >= 0 and asked >= KERNEL else "?"
        offset = asked - order[at] if name != "?" else 0
        print(f"{asked:x} {name} {offset:x}")


if __name__ == "__main__":
    main()
