"""Limits on what a machine says: a console, a stream, an answer, a text that is quoted.

A machine may say anything, and as much as it likes. What is read here takes time in proportion to
its bytes and never more memory than a limit; what is left out is counted and said in a line.
"""

from __future__ import annotations

from collections.abc import Iterable

_MIB = 1 << 20

ANSWER_BYTES = 8 * _MIB
"""What a command may print, on each of its two outputs, unless its caller expects more."""
CONSOLE_BYTES = 4 * _MIB
"""What a console may say in one boot. A kernel with every message switched on says about 1 MiB."""
CONSOLE_LINES = 30_000
"""In how many lines. Each is looked at, so that many short ones cost more time than bytes."""
MARKS_BYTES = 6 * _MIB
"""What the watch agent may say of one guest boot, the guest's console included."""
MARKS_LINES = 2 * CONSOLE_LINES
LOG_BYTES = 1 * _MIB
"""What is kept of QEMU's log. Usually it has a few KiB."""
FACTS_BYTES = 1 * _MIB // 4
"""What a machine may say of itself, for a file or the manifest."""
TRACE_BYTES = 16 * _MIB
"""What a trace may have as text: more than any recorded one by a factor of 25."""
TRIAL_BYTES = 16 * _MIB
"""What a trial may have on the disk when one of its stages begins: less than 1 MiB is usual."""

LINE_BYTES = 16 << 10
"""What is kept of one line of a console."""
STREAM_LINE_BYTES = 128 << 10
"""What is kept of one line of an agent: a console's line as JSON has up to six bytes for one."""

_LAST_BYTES = 16 << 10
_QUOTED_LINES = 100
_QUOTED_CHARACTERS = 500
_GAP_CHARACTERS = 50
"""For how much is missing."""
_MESSAGE_CHARACTERS = 20_000
"""A user's own words, as a path's, are among them: as long as a name can be, and twice."""


class Excerpt:
    """The first and the last bytes of a stream. However the stream is cut into chunks, the result
    is the same."""

    def __init__(self, most: int) -> None:
        """`most`: bytes that are kept, the first half of them and the last."""
        self._head_limit, self._tail_limit = most - most // 2, most // 2
        self._head, self._tail = bytearray(), bytearray()
        self._lost_lines = 0
        self.size = 0
        """Bytes of the stream until now."""

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
        """What is kept: all of it, or head and tail in whole lines with a line between them."""
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
    """Somebody said more than was asked for. An answer is of use as a whole alone, so that it is
    not cut; its last words are kept."""

    def __init__(self, most: int, answer: bytes | bytearray) -> None:
        super().__init__(f"more than {most} bytes")
        self.last = answer[-_LAST_BYTES:].decode(errors="replace")


def gather(chunks: Iterable[bytes], most: int) -> bytearray:
    """An answer that comes in chunks. Raises TooMuchError at the first byte too many."""
    answer = bytearray()
    for chunk in chunks:
        answer += chunk
        if len(answer) > most:
            raise TooMuchError(most, answer)
    return answer


class Lines:
    """The lines of a stream as they end, each cut at a limit."""

    def __init__(self, most: int = LINE_BYTES) -> None:
        self._most = most
        self._begun = bytearray()
        self._lost = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that end in this chunk, without their line feeds."""
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
        """The line that has not ended yet, as far as it is kept."""
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
    """A line for a message or a table: its beginning and its end, and what is missing counted. One
    that was cut is left as it is."""
    if len(line) <= most:
        return line
    half = (most - _GAP_CHARACTERS) // 2
    lost = len(line) - 2 * half
    return f"{line[:half]} ... {lost} characters left out ... {line[-half:]}"


def quoted(text: str) -> str:
    """A machine's words as an error, a manifest and a report quote them: their first and last
    lines, each cut. What is short, or was quoted before, comes back as it is."""
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
    """An error's message, which may have a machine's words in it."""
    return cut_line(message, _MESSAGE_CHARACTERS)


def excerpt_of(chunks: Iterable[bytes], most: int) -> Excerpt:
    """The excerpt of a stream that ends."""
    excerpt = Excerpt(most)
    for chunk in chunks:
        excerpt.feed(chunk)
    return excerpt
