"""Who may see the pages, and who may act by them (docs/decisions/0019)."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from starlette.requests import Request

from worker.embedded.errors import ApiError

TOKEN = "token"  # noqa: S105  # the name of a parameter


class Misdirected(ApiError):
    """The request was made for another host: a name that somebody else has pointed at this queue."""

    code = "MisdirectedRequest"
    status = 421


class Forbidden(ApiError):
    """The request does not come from a page of this queue that was opened with its token."""

    code = "Forbidden"
    status = 403


@dataclass(frozen=True)
class Visitor:
    """Somebody who looks at a page; the token is that of the queue or empty: then they may only look."""

    token: str = ""

    @property
    def may_act(self) -> bool:
        """Whether they may create and cancel, and see what a client with all scopes sees."""
        return bool(self.token)

    def url(self, path: str, **query: str) -> str:
        """The URL of a page for the same visitor."""
        given = {**query, TOKEN: self.token} if self.token else query
        return f"{path}?{urlencode(given)}" if given else path


class Guard:
    """Knows the token, which follows from the root client's: it leads to the pages, never to the API."""

    def __init__(self, root_url: Callable[[], str], access_token: Callable[[], str]) -> None:
        self._root_url = root_url
        self._access_token = access_token

    @property
    def root_url(self) -> str:
        """Where the queue is."""
        return self._root_url()

    @property
    def owner(self) -> Visitor:
        """Who has started the queue."""
        return Visitor(hmac.digest(self._access_token().encode(), b"pages", "sha256").hex())

    def visitor(self, token: str) -> Visitor:
        """Who has come with a token, be it none or a wrong one."""
        return self.owner if hmac.compare_digest(token.encode(), self.owner.token.encode()) else Visitor()

    def check_host(self, request: Request) -> None:
        """Raise Misdirected where the browser takes this queue for a host that it is not known as.

        A name in somebody else's hands can be pointed at any address, and then its pages could read these. An address
        cannot, nor can `localhost`.
        """
        try:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        except ValueError:
            host = ""
        if host not in {"localhost", urlsplit(self.root_url).hostname} and not _is_address(host):
            raise Misdirected(f"This queue is not at {host!r}. It is at {self.root_url}")

    def check_action(self, request: Request, visitor: Visitor) -> None:
        """Raise Forbidden for forms of other pages, and for visitors without the token."""
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
        # Browsers send the first with every form; that one without it but with the token is none.
        foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host")
        if foreign or site not in {None, "same-origin"}:
            raise Forbidden("The form is not one of this queue's pages")
        if not visitor.may_act:
            raise Forbidden("The page was opened without the queue's token: open the URL that it printed at its start")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
