"""Serves ASGI applications: hypercorn speaks HTTP/1.1 and websockets, and what a peer may take in time, memory and
connections is limited here."""

from worker.serving.applications import PeerGone
from worker.serving.connection import serve_connection
from worker.serving.limits import ServingLimits
from worker.serving.server import serve
from worker.serving.sockets import listen, port_of
from worker.serving.tls import BadCertificate, Certificate, TlsConfig, load_certificate

__all__ = [
    "BadCertificate",
    "Certificate",
    "PeerGone",
    "ServingLimits",
    "TlsConfig",
    "listen",
    "load_certificate",
    "port_of",
    "serve",
    "serve_connection",
]
