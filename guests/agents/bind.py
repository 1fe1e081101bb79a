"""Give PCI functions to a driver, on a host without a journal. Plain Python 3, with the keeper
beside it, whose binder this is.

    bind.py DRIVER ADDRESS...

Answers {"bound": [{...}, ...]} with the facts of each change as in the keeper's journal, or
{"refused": REASON, "message": TEXT}. Then nothing is put back: the caller ends the host.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # `python3 -I` leaves the program's own folder out of the path
    sys.path.insert(0, str(Path(__file__).parent))

from keeper.changes import pci
from keeper.machine import RefusedError


def bind(driver: str, addresses: list[str]) -> dict[str, Any]:
    bound = []
    try:
        for address in addresses:
            change = pci.plan(address, driver)
            pci.bind(change)
            bound.append(change)
    except RefusedError as exc:
        return {"refused": exc.reason, "message": str(exc)}
    except OSError as exc:
        return {"refused": "bind", "message": f"{exc.filename}: {exc.strerror}"}
    return {"bound": bound}


def main() -> None:
    print(json.dumps(bind(sys.argv[1], sys.argv[2:])))


if __name__ == "__main__":
    main()
