"""Which bytes of a log a request wants, without I/O (RFC 9110, section 14; RFC 8673 for what still grows)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SPEC = re.compile(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Bytes `first` to `last`, inclusive; None for as far as they go. With `first` None the last `last` bytes."""

    first: int | None
    last: int | None


@dataclass(frozen=True, slots=True)
class Part:
    """The answer to a range: bytes from `first` up to `end`, exclusive; `complete` is the log's length if known.

    `whole` says that all of them are there now.
    """

    first: int
    end: int
    complete: int | None
    whole: bool

    @property
    def content_range(self) -> str:
        """The header of that name."""
        return f"bytes {self.first}-{self.end - 1}/{'*' if self.complete is None else self.complete}"


def parse_range(header: str) -> Wanted | None:
    """What a `Range` header asks for; None for one that is to be ignored: malformed, several ranges, other units."""
    match = _SPEC.fullmatch(header)
    if match is None or not (match[1] or match[2]):
        return None
    first, last = (int(digits) if digits else None for digits in match.groups())
    if first is not None and last is not None and last < first:
        return None
    return Wanted(first, last)


def part_of(wanted: Wanted, size: int, *, closed: bool) -> Part | None:
    """What to answer where the log has `size` bytes now; None if there is none of them.

    Without a last byte that is what there is. With one beyond that, of a log that still grows, it is what will be there
    as well, up to the log's end (RFC 8673, section 2.1): so who follows names a very large one.
    """
    complete = size if closed else None
    if wanted.first is None:
        assert wanted.last is not None
        first, end = max(0, size - wanted.last), size
    else:
        first = wanted.first
        end = size if wanted.last is None else wanted.last + 1
        if closed:
            end = min(end, size)
    if first >= end or first > size:
        return None
    return Part(first, end, complete, whole=end <= size)
