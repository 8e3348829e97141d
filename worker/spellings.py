"""The forms in which a secret gets into a log unmeant, without I/O."""

from __future__ import annotations

import json
from base64 import b64encode
from urllib.parse import quote, quote_plus

from worker.redaction import MINIMUM


def spellings(value: bytes) -> frozenset[bytes]:
    """The secret as tools print it; none if it is too short to be hidden. White space around it does not belong to it.

    Besides the value: with the line ends of a terminal, URL-quoted, as in a JSON string, and in base64 within whatever
    stands before and after it. Since this is how secrets get into logs unmeant: `curl -v` prints the header of basic
    authentication, which is base64 of user, colon and password; errors print URLs; `env` is dumped as JSON. It costs a
    few literals per secret. It is no promise: base64 that is wrapped, a hexadecimal dump or one line of several is
    told, and so a task that means to tell a secret can. In base64, what shares a character with other bytes is told:
    4 bits at either end at most.
    """
    value = value.strip()
    text = value.decode(errors="surrogateescape")
    forms = {value, value.replace(b"\r\n", b"\n")}
    forms |= {form.replace(b"\n", b"\r\n") for form in forms if b"\r" not in form}
    forms |= {quote(value).encode(), quote(value, safe="").encode(), quote_plus(value).encode()}
    forms |= {json.dumps(text)[1:-1].encode()}
    forms |= {json.dumps(text, ensure_ascii=False)[1:-1].encode(errors="surrogateescape")}
    for shift in range(3):
        encoded = b64encode(bytes(shift) + value)
        # Bytes are 8 bits and characters 6: those that hold bits of nothing but the value.
        own = encoded[-(-8 * shift // 6) : 8 * (shift + len(value)) // 6]
        forms |= {own, own.translate(bytes.maketrans(b"+/", b"-_"))}
    return frozenset(form for form in forms if len(form) >= MINIMUM) if len(value) >= MINIMUM else frozenset()
