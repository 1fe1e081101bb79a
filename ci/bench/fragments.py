"""Hold barometer's reading of configurations to kconfig's: random fragments of all types of
symbols, with comments, and with what people write by mistake.

    ci/bench/fragments.py [--conf CONF] [--fragments 1000] [--seed 1]

CONF is scripts/kconfig/conf of a built kernel, or of Debian's package linux-kbuild-VERSION.
Without it, every one is tried that is installed, or unpacked in barometer's cache.

Prints how many fragments came out alike, and how many barometer refused (each kind with an
example); fails if something else comes out of a fragment than what kconfig itself makes of it.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError
from orchestrator.kernels.source.config import parse_config, read_config

KCONFIG = """\
config MODULES
\tbool
\tdefault y
\tmodules
config FLAG
\tbool "f"
config PART
\ttristate "p"
config PLACE
\thex "h"
config COUNT
\tint "i"
config NAME
\tstring "s"
"""
VALUES = {
    "FLAG": ("y", "n"), "PART": ("y", "m", "n", "m # why"), "PLACE": ("0x1F", "1f", "0X10", "0"),
    "COUNT": ("0", "12", "-5", "007"),
    "NAME": ('""', '"a b"', '"a\\\\b"', '"a\\"b"', '"# no comment"', '"x" # why'),
}  # fmt: skip
WRONG = ("maybe", "Y", '"y"', "", "=y", "yes", "0xg", "1.5", "+3", '"12"', '"open', "bare")
COMMENTS = (
    "", "#", "# CONFIG_FLAG is wanted", "#CONFIG_FLAG=y", "## CONFIG_PART is not set",
    "#  CONFIG_PART is not set", "#CONFIG_PART is not set", "# CONFIG_PART is  not set",
    "# CONFIG_PART=y", "# a menu", "# PART is not set", "# end of CONFIG_PART is not set",
    "# CONFIG_PART",
)  # fmt: skip
NO_LINES = ("CONFIG_FLAG", "CONFIG_FLAG = y", "FLAG=y", "config_FLAG=y", "CONFIG_PART =m", "text")


def draw_line(draw: random.Random) -> str:
    name = draw.choice([*VALUES])
    (kind,) = draw.choices(("value", "off", "comment", "wrong", "no line"), (50, 20, 25, 3, 2))
    return {
        "value": f"CONFIG_{name}={draw.choice(VALUES[name])}",
        "off": f"# CONFIG_{name} is not set",
        "comment": draw.choice(COMMENTS), "wrong": f"CONFIG_{name}={draw.choice(WRONG)}",
        "no line": draw.choice(NO_LINES),
    }[kind]  # fmt: skip


def make_config(conf: Path, folder: Path, fragment: str) -> str:
    """Return the .config that kconfig makes of a fragment."""
    (folder / "Kconfig").write_text(KCONFIG)
    environment = {"KCONFIG_ALLCONFIG": fragment, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([conf, "--allnoconfig", "Kconfig"], cwd=folder, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        sys.exit(f"{conf} ended with {done.returncode}: {done.stderr}")
    return (folder / ".config").read_text()


def compare(conf: Path, lines: list[str], end: str, folder: Path) -> tuple[str, str]:
    """Return what became of a fragment, and a detail. What barometer reads goes through kconfig,
    too, and is checked as in a build."""
    fragment = folder / "fragment"
    fragment.write_bytes(end.join([*lines, ""]).encode())
    theirs = make_config(conf, folder, "fragment")
    try:
        config = read_config([str(fragment)])
    except ScenarioError as exc:
        return "refused: no line", exc.message.partition(": ")[2].partition(" is no line")[0]
    read = {n: v for n, v in config.requested.items() if config.origins[n] == "fragment"}
    asked = replace(config, requested=read, origins=dict.fromkeys(read, "fragment"), required={},
                    desired={})  # fmt: skip
    (folder / "asked").write_text(asked.text())
    ours = make_config(conf, folder, "asked")
    try:
        asked.check(ours, "kconfig")
    except ScenarioError as exc:
        return "refused: did not come out", exc.evidence
    if parse_config(ours) == parse_config(theirs):
        return "alike", ""
    return "differs", f"{lines}: {parse_config(ours)}, kconfig {parse_config(theirs)}"


def find_programs() -> list[Path]:
    pattern = "usr/lib/linux-kbuild-*/scripts/kconfig/conf"
    layers = Cache().folder("headers").glob(f"*/layer/{pattern}")
    return sorted([*Path("/").glob(pattern), *layers])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--conf", type=Path, action="append")
    parser.add_argument("--fragments", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    programs = given.conf or find_programs()
    if not programs:
        sys.exit("there is no kconfig: install linux-kbuild-VERSION, or name one with --conf")
    wrong = 0
    for conf in programs:
        draw = random.Random(given.seed)
        counts: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for _ in range(given.fragments):
            lines = [draw_line(draw) for _ in range(draw.randint(1, 8))]
            with tempfile.TemporaryDirectory() as name:
                outcome, why = compare(conf, lines, draw.choice(["\n", "\r\n"]), Path(name))
            counts[outcome] += 1
            examples.setdefault(why, outcome)
        print(conf)
        for outcome, count in counts.most_common():
            print(f"{count:7}  {outcome}")
        for why in sorted(filter(None, examples)):
            print(f"    {examples[why]}: {why}")
        wrong += counts["differs"]
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
