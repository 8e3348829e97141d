"""Hawk signatures, with mohawk as the oracle."""

from __future__ import annotations

import base64
import json

import httpx
import mohawk
import mohawk.bewit
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.queue.credentials import Credentials
from worker.queue.signing import hawk_bewit, hawk_ext, hawk_header

CLIENT_IDS = st.from_regex(r"[A-Za-z0-9!@/:.+|_-]{1,60}", fullmatch=True)
TOKENS = st.from_regex(r"[A-Za-z0-9_-]{22,66}", fullmatch=True)
SCOPES = st.none() | st.lists(st.from_regex(r"[ -~]{0,40}", fullmatch=True), max_size=5).map(tuple)
CERTIFICATES = st.none() | st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20), max_size=4).map(
    json.dumps
)
SIGNERS = st.builds(Credentials, CLIENT_IDS, TOKENS, CERTIFICATES, SCOPES)
SEGMENTS = st.lists(st.from_regex(r"[A-Za-z0-9._~-]{1,10}|%2F|%20", fullmatch=True), min_size=1, max_size=5)
QUERIES = st.sampled_from(["", "?limit=5", "?continuationToken=a%2Fb%2B1&limit=5"])
ORIGINS = st.sampled_from(["https://tc.example.com", "http://localhost:8080", "http://LOCALHOST", "https://h:443"])
URLS = st.builds(lambda origin, path, query: f"{origin}/api/{'/'.join(path)}{query}", ORIGINS, SEGMENTS, QUERIES)


@given(SIGNERS, st.sampled_from(["GET", "post", "PUT"]), URLS, st.integers(1, 2**32), TOKENS)
def test_header_is_what_mohawk_accepts(signer: Credentials, method: str, url: str, now: int, nonce: str) -> None:
    header = hawk_header(signer, method, httpx.URL(url), timestamp=now, nonce=nonce)
    key = {"id": signer.client_id, "key": signer.access_token, "algorithm": "sha256"}
    receiver = mohawk.Receiver(
        lambda _client_id: key,
        header,
        str(httpx.URL(url)),
        method.upper(),
        accept_untrusted_content=True,
        localtime_offset_in_seconds=0,
        timestamp_skew_in_seconds=2**40,
    )
    assert receiver.parsed_header["id"] == signer.client_id
    assert receiver.parsed_header.get("ext", "") == hawk_ext(signer)


@given(SIGNERS, URLS, st.integers(1, 2**32))
def test_bewit_is_what_mohawk_makes(signer: Credentials, url: str, expires: int) -> None:
    resource = mohawk.base.Resource(
        credentials={"id": signer.client_id, "key": signer.access_token, "algorithm": "sha256"},
        method="GET",
        ext=hawk_ext(signer),
        url=str(httpx.URL(url)),
        timestamp=expires,
        nonce="",
    )
    expected = mohawk.bewit.get_bewit(resource).rstrip("=")
    assert hawk_bewit(signer, httpx.URL(url), expires=expires) == expected


def test_ext_holds_certificate_and_scopes() -> None:
    ext = hawk_ext(Credentials("c", "t", '{"version": 1}', ("a", "b")))
    assert json.loads(base64.urlsafe_b64decode(ext)) == {"certificate": {"version": 1}, "authorizedScopes": ["a", "b"]}


def test_no_scopes_at_all_is_not_the_same_as_all_scopes() -> None:
    assert json.loads(base64.urlsafe_b64decode(hawk_ext(Credentials("c", "t", None, ())))) == {"authorizedScopes": []}
    assert hawk_ext(Credentials("c", "t")) == ""


@pytest.mark.parametrize("client_id", ['a"b', "a\\b", "a\nb", "ä"])
def test_client_id_that_would_break_the_header_is_refused(client_id: str) -> None:
    with pytest.raises(ValueError, match="client id"):
        hawk_header(Credentials(client_id, "t"), "GET", httpx.URL("http://x/"), timestamp=1, nonce="n")


def test_repr_hides_secrets() -> None:
    text = repr(Credentials("someone", "topsecret-token", '{"signature":"topsecret"}', ("scope",)))
    assert "someone" in text
    assert "scope" in text
    assert "topsecret" not in text
