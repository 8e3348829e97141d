"""Certificates for tests, in files."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from worker.serving import TlsConfig


def write_certificate(folder: Path, *, password: str | None = None) -> TlsConfig:
    """A new key and a certificate for 127.0.0.1 that signs itself, as `certificate.pem` and `key.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password.encode())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    config = TlsConfig(certificate=folder / "certificate.pem", key=folder / "key.pem")
    config.certificate.write_bytes(certificate.public_bytes(pem))
    config.key.write_bytes(key.private_bytes(pem, pkcs8, encryption))
    return config


def trusting(config: TlsConfig) -> ssl.SSLContext:
    """A client's context that trusts the certificate as its file is now."""
    return ssl.create_default_context(cafile=config.certificate)
