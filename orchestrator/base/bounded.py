"""Limits on what a machine prints: a console, a stream, an answer, a text that is quoted.

A machine may print anything, and as much as it likes. Reading it here takes time in proportion to
its bytes and never more memory than a limit. What is left out is counted and reported in a line.
"""

from __future__ import annotations

from collections.abc import Iterable

_MIB = 1 << 20

ANSWER_BYTES = 8 * _MIB
"""Bytes that a command may print on each of its two outputs, unless its caller expects more."""
CONSOLE_BYTES = 4 * _MIB
"""Bytes that a console may print in one boot. A kernel with every message switched on prints about
1 MiB."""
CONSOLE_LINES = 30_000
"""Lines that a console may print in one boot. Each is inspected, so many short ones cost more time
than their bytes do."""
MARKS_BYTES = 6 * _MIB
"""Bytes that the watch agent may report of one guest boot, the guest's console included."""
MARKS_LINES = 2 * CONSOLE_LINES
LOG_BYTES = 1 * _MIB
"""Bytes of QEMU's log that are kept. Usually it has a few KiB."""
FACTS_BYTES = 1 * _MIB // 4
"""Bytes that a machine may report about itself, for a file or the manifest."""
TRACE_BYTES = 16 * _MIB
"""Bytes that a trace may have as text: 25 times more than any recorded one."""
TRIAL_BYTES = 16 * _MIB
"""Bytes that a trial may have on the disk when one of its stages begins. Less than 1 MiB is
usual."""

LINE_BYTES = 16 << 10
"""Bytes of one console line that are kept."""
STREAM_LINE_BYTES = 128 << 10
"""Bytes of one line of an agent that are kept. The line quotes a console's line as JSON, in which
one byte takes up to six."""

_LAST_BYTES = 16 << 10
_QUOTED_LINES = 100
_QUOTED_CHARACTERS = 500
_GAP_CHARACTERS = 50
"""Characters for the note of how much is missing."""
_MESSAGE_CHARACTERS = 20_000
"""Characters of an error's message. It may contain a user's own words, such as a path: there is
room for two paths of the greatest length."""


class Excerpt:
    """The first and the last bytes of a stream. The result does not depend on how the stream is
    cut into chunks."""

    def __init__(self, most: int) -> None:
        """`most`: bytes that are kept, half of them from the start and half from the end."""
        self._head_limit, self._tail_limit = most - most // 2, most // 2
        self._head, self._tail = bytearray(), bytearray()
        self._lost_lines = 0
        self.size = 0
        """Bytes of the stream so far."""

    @property
    def kept(self) -> int:
        """Bytes that are held."""
        return len(self._head) + len(self._tail)

    def feed(self, chunk: bytes) -> None:
        self.size += len(chunk)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        if len(chunk) > self._tail_limit:
            cut = len(chunk) - self._tail_limit
            self._lost_lines += self._tail.count(b"\n") + chunk.count(b"\n", 0, cut)
            self._tail = bytearray(chunk[cut:])
        elif chunk:
            over = len(self._tail) + len(chunk) - self._tail_limit
            if over > 0:
                self._lost_lines += self._tail.count(b"\n", 0, over)
                del self._tail[:over]
            self._tail += chunk

    def content(self) -> bytes:
        """Return what is kept: the whole stream, or head and tail in whole lines with a line
        between them that counts what is left out."""
        lost = self.size - self.kept
        if not lost:
            return bytes(self._head + self._tail)
        head, tail = self._head, self._tail
        end = head.rfind(b"\n") + 1 or len(head)
        start = tail.find(b"\n", 0, -1) + 1
        lines = self._lost_lines + (1 if start else 0)
        lost += len(head) - end + start
        between = _left_out(lost, lines).encode()
        gap = b"" if head[:end].endswith(b"\n") else b"\n"
        return bytes(head[:end]) + gap + between + b"\n" + bytes(tail[start:])

    def text(self) -> str:
        return self.content().decode(errors="replace")


class TooMuchError(Exception):
    """A machine or a program printed more than its limit. An answer is only useful as a whole, so
    it is not cut; its last bytes are kept."""

    def __init__(self, most: int, answer: bytes | bytearray) -> None:
        super().__init__(f"more than {most} bytes")
        self.last = answer[-_LAST_BYTES:].decode(errors="replace")


def gather(chunks: Iterable[bytes], most: int) -> bytearray:
    """Collect an answer that arrives in chunks. Raises TooMuchError at the first byte too many."""
    answer = bytearray()
    for chunk in chunks:
        answer += chunk
        if len(answer) > most:
            raise TooMuchError(most, answer)
    return answer


class Lines:
    """Splitter of a stream into lines, each cut at a limit."""

    def __init__(self, most: int = LINE_BYTES) -> None:
        self._most = most
        self._begun = bytearray()
        self._lost = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that end in this chunk, without their line feeds."""
        first, *more = chunk.split(b"\n")
        self._go_on(first)
        if not more:
            return []
        *whole, last = more
        ended = [self.begun(), *(self._cut(line) for line in whole)]
        self._begun, self._lost = bytearray(), 0
        self._go_on(last)
        return ended

    def begun(self) -> bytes:
        """Return the line that has not ended yet, as far as it is kept."""
        return _with_lost(bytes(self._begun), self._lost)

    def _cut(self, line: bytes) -> bytes:
        return _with_lost(line[: self._most], max(0, len(line) - self._most))

    def _go_on(self, piece: bytes) -> None:
        room = self._most - len(self._begun)
        self._begun += piece[:room]
        self._lost += max(0, len(piece) - room)


def _with_lost(line: bytes, lost: int) -> bytes:
    return line + f" ... {lost} bytes left out".encode() if lost else line


def _left_out(size: int, lines: int) -> str:
    return f"... {size} bytes, {lines} lines left out ..."


def cut_line(line: str, most: int = _QUOTED_CHARACTERS) -> str:
    """Shorten a line for a message or a table to its beginning and its end, and count what is
    missing. A line that was cut before comes back as it is."""
    if len(line) <= most:
        return line
    half = (most - _GAP_CHARACTERS) // 2
    lost = len(line) - 2 * half
    return f"{line[:half]} ... {lost} characters left out ... {line[-half:]}"


def quoted(text: str) -> str:
    """Shorten a machine's output as an error, a manifest and a report quote it: to the first and
    last lines, each cut. Text that is short, or was quoted before, comes back as it is."""
    lines = text.splitlines()
    over = len(lines) - _QUOTED_LINES
    if over <= 0 and all(len(line) <= _QUOTED_CHARACTERS for line in lines):
        return text
    if over > 0:
        first, last = _QUOTED_LINES // 4, len(lines) - (_QUOTED_LINES - _QUOTED_LINES // 4 - 1)
        lost = lines[first:last]
        between = _left_out(sum(len(line) + 1 for line in lost), len(lost))
        lines = [*lines[:first], between, *lines[last:]]
    return "\n".join(map(cut_line, lines))


def cut_message(message: str) -> str:
    """Shorten an error's message, which may contain a machine's output."""
    return cut_line(message, _MESSAGE_CHARACTERS)


def excerpt_of(chunks: Iterable[bytes], most: int) -> Excerpt:
    """Return the excerpt of a stream that ends."""
    excerpt = Excerpt(most)
    for chunk in chunks:
        excerpt.feed(chunk)
    return excerpt
