"""Secrets taken out of a stream of bytes, without I/O.

What is hidden is every byte of every occurrence of a secret and of every match of a pattern, also where these overlap.
Each run of hidden bytes becomes one MARKER. That is said of the bytes as a whole, so it does not matter how they were
split on their way.

The bytes that are not told yet are kept with two cursors: secrets that begin before the one are found, and patterns
have seen what is before the other. What is before both can be told, since nothing that comes later hides it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator

MARKER = b"[redacted]"
MINIMUM = 4  # bytes; what is shorter is found all over a log, and is no secret
LINE = 4 * 1024  # bytes of a line that patterns see at once, and that are held back for them at most

_GATE = 16  # bytes of a secret that the gate looks at; more does not make it stricter in practice

Span = tuple[int, int]


class Redactor:
    """Hides `secrets`, taken literally, and what `patterns` match in a line.

    Of the secrets: none that was added before its first byte was fed is told, nor a part of one that is whole. Held
    back is the longest end of the bytes so far with which a secret may begin, and nothing else; where the log ends
    within a secret, that part is told. (A marker and its neighbours may spell a secret: one that begins with `]`, say.
    It was not in the log then.)

    Of the patterns: a line ends with `\\n` or `\\r`, which they do not see. The unfinished line is held back, `line`
    bytes of it at most: a longer one is seen in pieces of so many bytes that overlap by a half, so that whatever is no
    longer than a half is whole in one of them, and told piece by piece. An anchor matches where a piece begins or ends,
    too. Nothing limits the time that a pattern takes: one that is quadratic costs the square of `line`.
    """

    def __init__(
        self, secrets: Iterable[bytes] = (), patterns: Iterable[re.Pattern[bytes]] = (), line: int = LINE
    ) -> None:
        self._patterns = tuple(patterns)
        self._line = line
        self._secrets: list[bytes] = []  # sorted
        self._longest = 0
        self._gate = re.compile(b"")  # matches wherever a secret may begin, and seldom elsewhere
        self._held = b""
        self._spans: list[Span] = []  # what is to be hidden of the held bytes, as far as it is known
        self._sought = 0  # secrets that begin before this one of the held bytes are found
        self._matched = 0  # and this is where the piece begins that patterns have not seen
        self._hiding = False  # the last byte that was told is one of those for which the marker stands
        self.add(secrets)

    @property
    def held(self) -> int:
        """How many bytes are held back."""
        return len(self._held)

    def add(self, secrets: Iterable[bytes]) -> None:
        """Hide these too, from the bytes on that are held back now. Raises ValueError for one that is too short."""
        added = {*self._secrets, *secrets}
        if len(added) == len(self._secrets):
            return
        if min(map(len, added)) < MINIMUM:
            raise ValueError(f"a secret of less than {MINIMUM} bytes cannot be hidden")
        self._secrets = sorted(added)
        self._longest = max(map(len, added))
        self._gate = re.compile(_gate(added))
        self._sought = 0

    def feed(self, chunk: bytes) -> bytes:
        """What can be told now that `chunk` follows."""
        if not self._secrets and not self._patterns:
            return chunk
        data = self._held + chunk
        ready = len(data)
        if self._secrets:
            ready = self._seek(data)
        if self._patterns:
            ready = min(ready, self._match(data))
        return self._tell(data, ready)

    def end(self) -> bytes:
        """The rest: nothing follows. What is fed afterwards is another log's."""
        data = self._held
        if self._secrets:
            self._seek(data)
        if self._patterns:
            self._match_piece(data, self._matched, len(data))
        told = self._tell(data, len(data))
        self._hiding = False
        return told

    def _seek(self, data: bytes) -> int:
        """Find the secrets; answers where one begins that may be unfinished, or the end.

        The time is that of one `bytes.find` per secret, which is faster than a regular expression of all: that tries
        one after the other at every byte.
        """
        gate = self._gate.search(data, self._sought)
        if gate is None:
            self._sought = len(data)
            return self._sought
        for secret in self._secrets:
            start = data.find(secret, gate.start())
            while start >= 0:
                self._spans.append((start, start + len(secret)))
                start = data.find(secret, start + 1)
        self._sought = self._unfinished(data, max(gate.start(), len(data) - self._longest + 1))
        return self._sought

    def _unfinished(self, data: bytes, start: int) -> int:
        """The first place from `start` on from which all bytes are the beginning of a longer secret, or the end."""
        while gate := self._gate.search(data, start):
            start = gate.start()
            rest = data[start:]
            index = bisect_right(self._secrets, rest)  # those that begin with `rest` and go on follow it in their order
            if index < len(self._secrets) and self._secrets[index].startswith(rest):
                return start
            start += 1
        return len(data)

    def _match(self, data: bytes) -> int:
        """Let the patterns see what is complete; answers where the first piece begins that is not."""
        for line in data[self._matched :].splitlines(keepends=True):
            content = line.rstrip(b"\r\n")
            end = self._matched + len(content)
            while end - self._matched > self._line:
                self._match_piece(data, self._matched, self._matched + self._line)
                self._matched += self._line // 2
            if len(content) < len(line):
                self._match_piece(data, self._matched, end)
                self._matched = end + len(line) - len(content)
        return self._matched

    def _match_piece(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        for pattern in self._patterns:
            for match in pattern.finditer(piece):
                if match[0]:
                    self._spans.append((start + match.start(), start + match.end()))

    def _tell(self, data: bytes, ready: int) -> bytes:
        """The first `ready` bytes of `data`, redacted; the others are held back."""
        spans = list(_merged(self._spans))
        told = []
        done = 0
        for start, end in spans:
            if start >= ready:
                break
            told.append(data[done:start])
            if start > done or not self._hiding:
                told.append(MARKER)
            self._hiding = True
            done = min(end, ready)
        if done < ready:
            told.append(data[done:ready])
            self._hiding = False
        self._held = data[ready:]
        self._spans = [(max(0, start - ready), end - ready) for start, end in spans if end > ready]
        self._sought = max(0, self._sought - ready)
        self._matched = max(0, self._matched - ready)
        return b"".join(told)


def _merged(spans: list[Span]) -> Iterator[Span]:
    """The same bytes in spans that are in order and do not touch."""
    if not spans:
        return
    spans.sort()
    first, last = spans[0]
    for start, end in spans:
        if start > last:
            yield first, last
            first = start
        last = max(last, end)
    yield first, last


def _gate(secrets: Iterable[bytes]) -> bytes:
    """Matches where each byte is one that some secret has at this place, as far as the data and every secret go.

    One such test is enough for any number of secrets, and most of a log does not pass it.
    """
    columns = list(zip(*(secret[:_GATE] for secret in secrets), strict=False))
    gate = b""
    for column in reversed(columns):
        byte = b"[%b]" % b"".join(b"\\x%02x" % value for value in sorted(set(column)))
        gate = byte + (b"(?:\\Z|%b)" % gate if gate else b"")
    return gate
