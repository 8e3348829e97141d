from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.redaction import LINE, MARKER, MINIMUM, Redactor
from worker.spellings import spellings

SECRETS = st.lists(st.text("ab\n", min_size=MINIMUM, max_size=9).map(str.encode), max_size=5)
CHUNKS = st.lists(st.text("ab\n", max_size=12).map(str.encode), max_size=12)
PATTERNS = [re.compile(rb"ba+"), re.compile(rb"^a|b*$"), re.compile(rb"(?<=a)b[^a]")]


def hidden(data: bytes, secrets: Iterable[bytes], patterns: Iterable[re.Pattern[bytes]] = ()) -> list[bool]:
    """The oracle: which bytes belong to an occurrence of a secret or to a match in a line."""
    spans = [
        (match.start(), match.start() + len(secret))
        for secret in secrets
        for match in re.finditer(b"(?=%b)" % re.escape(secret), data)
    ]
    for line in re.finditer(rb"[^\r\n]+", data):
        spans += [
            (line.start() + match.start(), line.start() + match.end())
            for pattern in patterns
            for match in pattern.finditer(line[0])
        ]
    marks = [False] * len(data)
    for start, end in spans:
        marks[start:end] = [True] * (end - start)
    return marks


def shown(data: bytes, marks: Sequence[bool]) -> bytes:
    runs = groupby(zip(data, marks, strict=True), key=lambda pair: pair[1])
    return b"".join(MARKER if hide else bytes(byte for byte, _ in run) for hide, run in runs)


def may_begin(data: bytes, secrets: Iterable[bytes]) -> int:
    """How long the longest end of `data` is that is the beginning of a longer secret."""
    beginnings = {secret[:length] for secret in secrets for length in range(1, len(secret))}
    return max((length for length in range(1, len(data) + 1) if data[-length:] in beginnings), default=0)


def leaked(told: bytes, secrets: Iterable[bytes]) -> list[bytes]:
    """The secrets that can be seen. What the end of a marker and the bytes behind it spell was not in the input."""
    seen = told.split(MARKER)
    return [secret for secret in secrets if any(secret in part for part in seen)]


def redact(redactor: Redactor, chunks: Iterable[bytes]) -> bytes:
    return b"".join([*map(redactor.feed, chunks), redactor.end()])


def test_a_secret_becomes_the_marker_and_what_surrounds_it_stays() -> None:
    assert redact(Redactor([b"hunter2"]), [b"password: hunter2\n"]) == b"password: [redacted]\n"


def test_a_secret_is_found_whichever_way_it_is_split() -> None:
    for at in range(8):
        assert redact(Redactor([b"hunter2"]), [b"hunter2"[:at], b"hunter2"[at:], b"!"]) == b"[redacted]!"


def test_without_secrets_and_where_there_is_none_the_chunk_itself_comes_back() -> None:
    chunk = b"nothing of interest\n" * 10
    assert Redactor().feed(chunk) is chunk
    assert Redactor([b"hunter2"]).feed(chunk) == chunk


def test_of_secrets_that_overlap_or_begin_alike_no_part_is_told() -> None:
    redactor = Redactor([b"abcdef", b"defghi", b"abcd"])
    assert redact(redactor, [b"abc", b"def", b"ghi abcd abcdefg"]) == b"[redacted] [redacted] [redacted]g"
    assert redact(Redactor([b"aaaa"]), [b"aaa", b"aaa", b"b", b"aaa"]) == b"[redacted]baaa"


def test_a_secret_of_several_lines_is_found_over_chunks_and_patterns_see_its_lines_whole() -> None:
    redactor = Redactor([b"-----BEGIN\nMII\n"], [re.compile(rb"x-+BEGIN$")])
    assert redactor.feed(b"x-----BEGIN\n") == b"[redacted]"  # the rest may be the secret, though it is hidden anyhow
    assert redactor.feed(b"MI") == b""
    assert redactor.feed(b"I\n.") == b""
    assert redactor.end() == b"."
    assert redact(redactor, [b"x-----BEGIN\n", b"MI", b"?"]) == b"[redacted]\nMI?"


def test_patterns_see_no_line_twice_of_which_a_secret_holds_back_the_end() -> None:
    assert redact(Redactor([b"a\nab"], [re.compile(rb"^a")]), [b"ba\n", b"b", b"a"]) == b"ba\nba"


def test_a_marker_and_its_neighbours_may_spell_a_secret_that_was_not_there() -> None:
    told = redact(Redactor([b"hunter2", b"]abc"]), [b"hunter2abc"])
    assert told == b"[redacted]abc"
    assert not leaked(told, [b"]abc"])


def test_only_what_may_begin_a_secret_is_held_back() -> None:
    redactor = Redactor([b"hunter2"])
    assert redactor.feed(b"the hunt") == b"the "
    assert redactor.held == 4
    assert redactor.feed(b"s hun") == b"hunts "
    assert redactor.end() == b"hun"
    assert redactor.held == 0


def test_a_secret_added_later_is_hidden_from_the_held_bytes_on() -> None:
    redactor = Redactor([b"a token"])
    assert redactor.feed(b"s3cret a tok") == b"s3cret "
    redactor.add([b"tok s3cret"])
    assert redact(redactor, [b" s3cret"]) == b"a [redacted]"
    redactor.add([b"s3cret"])
    assert redact(redactor, [b"s3cret"]) == b"[redacted]"
    held = Redactor([b"hunter2"], [re.compile(b"never")])
    held.feed(b"s3cret")
    held.add([b"s3cret"])
    assert held.end() == b"[redacted]"


def test_a_secret_that_is_too_short_is_refused_and_not_told() -> None:
    with pytest.raises(ValueError, match="less than 4 bytes") as refused:
        Redactor([b"xyz"])
    assert "xyz" not in str(refused.value)


def test_patterns_see_lines_however_they_end_and_hold_back_the_unfinished_one() -> None:
    redactor = Redactor(patterns=[re.compile(rb"^token=\w+$")])
    assert redactor.feed(b"token=a\ntok") == b"[redacted]\n"
    assert redactor.feed(b"en=b\r") == b"[redacted]\r"  # a progress bar is not held back
    assert redactor.feed(b"\ntoken=c d\r\ntoken=") == b"\ntoken=c d\r\n"
    assert redactor.feed(b"e") == b""
    assert redactor.end() == b"[redacted]"


def test_a_line_without_end_is_told_piece_by_piece_and_what_fits_a_half_is_found_in_it() -> None:
    redactor = Redactor(patterns=[re.compile(rb"<\w+>")], line=20)
    data = b"." * 17 + b"<12345678>" + b"." * 40
    told = b""
    for value in data:
        told += redactor.feed(bytes([value]))
        assert redactor.held <= 20
    assert told + redactor.end() == b"." * 17 + MARKER + b"." * 40


def test_no_more_than_the_limit_of_a_line_is_held_back() -> None:
    redactor = Redactor([b"hunter2"], [re.compile(rb"token=\w+")])
    told = redactor.feed(b"." * 10 * LINE)
    assert redactor.held <= LINE
    assert told + redactor.end() == b"." * 10 * LINE


def test_no_secret_is_in_the_repr() -> None:
    assert "hunter2" not in repr(Redactor([b"hunter2"]))


@given(SECRETS, CHUNKS, st.sets(st.sampled_from(PATTERNS)))
def test_the_output_does_not_depend_on_how_the_input_was_split(
    secrets: list[bytes], chunks: list[bytes], patterns: set[re.Pattern[bytes]]
) -> None:
    data = b"".join(chunks)
    told = redact(Redactor(secrets, patterns), chunks)
    assert told == shown(data, hidden(data, secrets, patterns))
    assert not leaked(told, secrets)


@given(SECRETS, CHUNKS)
def test_held_back_are_exactly_the_bytes_that_may_begin_a_secret(secrets: list[bytes], chunks: list[bytes]) -> None:
    redactor = Redactor(secrets)
    data = told = b""
    for chunk in chunks:
        data += chunk
        told += redactor.feed(chunk)
        assert redactor.held == may_begin(data, secrets)
        ready = len(data) - redactor.held
        assert told == shown(data[:ready], hidden(data, secrets)[:ready])


@given(CHUNKS, st.lists(st.sampled_from(PATTERNS)), st.integers(2, 9))
def test_long_lines_are_cut_alike_however_they_were_split(
    chunks: list[bytes], patterns: list[re.Pattern[bytes]], line: int
) -> None:
    redactor = Redactor([b"abab"], patterns, line)
    told = b""
    for chunk in chunks:
        told += redactor.feed(chunk)
        assert redactor.held <= max(line if patterns else 0, 3)
    assert told + redactor.end() == redact(Redactor([b"abab"], patterns, line), [b"".join(chunks)])


@given(SECRETS, SECRETS, CHUNKS, CHUNKS)
def test_what_is_added_is_found_in_all_that_was_not_told(
    first: list[bytes], second: list[bytes], before: list[bytes], after: list[bytes]
) -> None:
    redactor = Redactor(first)
    told = b"".join(map(redactor.feed, before))
    held = b"".join(before)[-redactor.held :] if redactor.held else b""
    redactor.add(second)
    rest = redact(redactor, after)
    # What was hidden before may reach into this; where it does not, all that is seen must be the same.
    data = held + b"".join(after)
    visible = shown(data, hidden(data, [*first, *second])).replace(MARKER, b"")
    assert told.endswith(MARKER) or rest.replace(MARKER, b"") == visible
    assert not leaked(rest, [*first, *second])


@pytest.mark.parametrize("trials", [2_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_random_secrets_split_at_random_places_do_not_leak(trials: int) -> None:
    for seed in range(trials):
        chance = random.Random(seed)
        secrets = [random_secret(chance) for _ in range(chance.randint(1, 5))]
        parts = [random_part(chance, secrets) for _ in range(chance.randint(1, 12))]
        data = b"".join(parts)
        cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.randint(0, 20)))
        chunks = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        told = redact(Redactor(secrets), chunks)
        assert not leaked(told, secrets), seed
        assert told == shown(data, hidden(data, secrets)), seed


def random_secret(chance: random.Random) -> bytes:
    lines = [chance.randbytes(chance.randint(4, 20)) for _ in range(chance.choice([1, 1, 1, 3]))]
    return b"\n".join(lines)


def random_part(chance: random.Random, secrets: list[bytes]) -> bytes:
    """Some noise, a secret, or a part of one."""
    secret = chance.choice(secrets)
    match chance.randrange(4):
        case 0:
            return chance.randbytes(chance.randint(0, 30)) + b"\n"
        case 1:
            return secret[: chance.randrange(len(secret))]
        case 2:
            return secret[chance.randrange(len(secret)) :]
    return secret


@given(st.binary(min_size=MINIMUM, max_size=40), st.binary(max_size=5), st.binary(max_size=5))
def test_a_secret_is_found_in_base64_within_other_bytes(secret: bytes, before: bytes, after: bytes) -> None:
    secret = b"<%b>" % secret
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        told = redact(Redactor(spellings(secret)), [encode(before + secret + after)])
        start, end, *_ = told.split(MARKER)
        # What is left of it shares a character with other bytes, or is padding.
        assert len(start) <= len(before) * 8 // 6 + 1
        assert len(end) <= -(-len(after) * 8 // 6) + 3


@given(st.text(min_size=MINIMUM).map(str.strip).filter(lambda text: len(text) >= MINIMUM))
def test_a_secret_is_found_in_a_url_and_in_json_and_at_a_terminal(text: str) -> None:
    redactor = Redactor(spellings(f"{text}\n".encode()))
    for form in (
        text,
        f"{text}\n",
        text.replace("\r\n", "\n").replace("\n", "\r\n") if "\r" not in text.replace("\r\n", "") else text,
        quote(text),
        quote(text, safe=""),
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
    ):
        assert redact(redactor, [b"'%b'" % form.strip().encode()]) == b"'[redacted]'"


def test_a_value_that_is_too_short_has_no_spellings() -> None:
    assert spellings(b" xyz\n") == frozenset()
