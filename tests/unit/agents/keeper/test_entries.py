"""The command line of a kernel on its way through GRUB."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keeper.changes import entries
from keeper.machine import RefusedError

WORDS = st.lists(
    st.one_of(
        st.text(alphabet='ab=". ', max_size=8),
        st.sampled_from(
            ['dyndbg="file drivers/vfio/* +p"', '"x=y z"', "root=UUID=1-2", "--", "ro"]
        ),
    ),
    max_size=5,
).map(" ".join)


def kernel_reads(cmdline: str) -> list[tuple[str, str | None]]:
    """Return the parameters as next_arg() of the kernel's lib/cmdline.c does, written after its C:
    by positions, as it is there."""
    found = []
    args = cmdline.lstrip()
    while args:
        in_quote = quoted = args[0] == '"'
        args = args[quoted:]
        at = equals = 0
        while at < len(args):
            if args[at].isspace() and not in_quote:
                break
            if not equals and args[at] == "=":
                equals = at
            if args[at] == '"':
                in_quote = not in_quote
            at += 1
        end, value = at, None
        ended = False
        if equals:
            begin = equals + 1
            if args[begin : begin + 1] == '"':
                begin += 1
                if args[at - 1] == '"':
                    end, ended = at - 1, True
            value = (begin, end)
        if quoted and at and args[at - 1] == '"' and not ended:
            end = at - 1
        name = args[:equals] if equals else args[:end]
        text = None if value is None else args[value[0] : max(value[0], end)]
        if name or text:
            found.append((name, text))
        args = args[at:].lstrip()
    return found


def grub_hands_over(words: list[str]) -> str:
    """Join words as grub_create_loader_cmdline() of grub-core/lib/cmdline.c does."""
    made = []
    for word in words:
        escaped = "".join(f"\\{c}" if c in "\\'\"" else c for c in word)
        made.append(f'"{escaped}"' if " " in word else escaped)
    return " ".join(made)


@given(WORDS)
@example('a="b c"')
@example('"a=b c" d')
def test_the_kernel_reads_behind_grub_what_it_reads_now(cmdline: str) -> None:
    words = entries.split_cmdline(cmdline)
    try:
        passed = [entries._for_grub(word) for word in words]
    except RefusedError:
        assert any(set(word) & set("\"'\\\t") for word in words)
        return
    # GRUB's shell takes the quoting off again; within single quotes it is that of a POSIX shell
    assert shlex.split(" ".join(map(entries._quoted, passed))) == passed
    assert kernel_reads(grub_hands_over(passed)) == kernel_reads(cmdline)


@pytest.mark.parametrize("word", ["a=it's", "a\\b", 'a=b"c d"e'])
def test_a_word_that_grub_would_change_is_refused(word: str) -> None:
    with pytest.raises(RefusedError) as caught:
        [entries._for_grub(w) for w in entries.split_cmdline(f"ro {word} quiet")]
    assert caught.value.args[0] == "grub" or "GRUB" in str(caught.value)
