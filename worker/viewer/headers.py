"""What browsers are told of pages whose content others have a hand in."""

from __future__ import annotations


def page_headers(*, connect: str = "'self'", form: str = "'none'", referrer: str = "no-referrer") -> dict[str, str]:
    """The headers of a page: scripts, styles and images are its own files alone, and nobody frames it.

    `connect` is where its scripts may fetch from, `form` where its forms may go, as sources of the Content Security
    Policy. The page's URL may hold a secret, so by default no referrer is sent.
    """
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": connect,
        "form-action": form,
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": referrer,
        "Cache-Control": "no-store",
    }
