"""A certificate and its key from files, taken anew when these change."""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
from pathlib import Path

import trio

from worker.ports import Ports
from worker.schema import Document, FilePath
from worker.serving.wire import RECEIVE, close_in_steps

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds until the files are looked at again, when a connection comes


class BadCertificate(Exception):
    """The files are not what they should be. The message names the file and the remedy, and has nothing of the key."""


class TlsConfig(Document):
    """Files in PEM form: the certificate with those between it and a known authority, and its private key."""

    certificate: FilePath
    key: FilePath

    def below(self, folder: Path) -> TlsConfig:
        """The same, with relative paths taken to be in `folder`."""
        return TlsConfig(certificate=folder / self.certificate.expanduser(), key=folder / self.key.expanduser())


class Certificate:
    """What `config` names, for handshakes. Made by `load_certificate`."""

    def __init__(self, config: TlsConfig, ports: Ports, context: ssl.SSLContext, seen: bytes) -> None:
        self._config = config
        self._ports = ports
        self._context = context
        self._seen = seen
        self._look_at = trio.current_time() + LOOK

    async def current(self) -> ssl.SSLContext:
        """The context for a new connection. While changed files are of no use the earlier ones stay in force, and an
        error is logged."""
        if trio.current_time() >= self._look_at:
            self._look_at = trio.current_time() + LOOK
            await self._look()
        return self._context

    async def _look(self) -> None:
        # The content is compared: times and sizes can stay the same.
        seen = await self._ports.run_sync(_digest, self._config)
        if seen == self._seen:
            return
        try:
            self._context = await self._ports.run_sync(_context, self._config)
        except BadCertificate as error:
            log.error("the certificate in use stays, since the changed one is of no use: %s", error)
        else:
            log.info("the certificate was renewed: %s", self._config.certificate)
        # Only now: the connection that looks may be cancelled meanwhile, and then the next one is to look again.
        self._seen = seen


async def load_certificate(config: TlsConfig, ports: Ports) -> Certificate:
    """The certificate for `serve`. Raises BadCertificate."""
    seen = await ports.run_sync(_digest, config)
    return Certificate(config, ports, await ports.run_sync(_context, config), seen)


def _digest(config: TlsConfig) -> bytes:
    digest = hashlib.sha256()
    for path in (config.certificate, config.key):
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            digest.update(str(error.errno).encode())
        digest.update(b"\0")
    return digest.digest()


def _context(config: TlsConfig) -> ssl.SSLContext:
    certificate, key = _read(config.certificate), _read(config.key)
    if b"-----BEGIN CERTIFICATE-----" not in certificate:
        raise BadCertificate(f"{config.certificate}: has no certificate in PEM form")
    if not re.search(rb"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----", key):
        raise BadCertificate(f"{config.key}: has no private key in PEM form")
    if re.search(rb"-----BEGIN ENCRYPTED|^Proc-Type:.*ENCRYPTED", key, re.MULTILINE):
        raise BadCertificate(f"{config.key}: is encrypted; write it without a password: openssl pkey -in OLD -out NEW")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(config.certificate, config.key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadCertificate(f"{config.key}: is not the key of {config.certificate}") from None
        raise BadCertificate(f"{config.certificate} with {config.key}: {error.reason or 'cannot be parsed'}") from None
    except OSError as error:
        raise BadCertificate(f"{error.filename or config.certificate}: cannot be read: {error.strerror}") from None
    return context


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadCertificate(f"{path}: cannot be read: {error.strerror}") from None


async def shake_hands(
    socket: trio.SocketStream, certificate: Certificate, seconds: float
) -> trio.SSLStream[trio.abc.Stream] | None:
    """TLS on `socket`; None where the peer cannot do it, or does not within `seconds`."""
    stream: trio.SSLStream[trio.abc.Stream] = trio.SSLStream(
        _Socket(socket), await certificate.current(), server_side=True
    )
    try:
        with trio.fail_after(seconds):
            await stream.do_handshake()
    except (trio.BrokenResourceError, trio.TooSlowError):
        return None
    return stream


class _Socket(trio.abc.Stream):
    """A socket that is closed in two steps, so that the peer gets the last bytes under TLS too."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes or RECEIVE)

    async def aclose(self) -> None:
        await close_in_steps(self._stream)
