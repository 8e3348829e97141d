"""Files that pages are made of, read once from where the package is installed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

CONTENT_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True)
class _Asset:
    content: bytes
    content_type: str
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "etag", f'"{hashlib.sha256(self.content).hexdigest()[:32]}"')


class Assets:
    """The files in the folder `static` of a package: served by name, or templates (`.html`, `.yml`).

    Reading them blocks; it happens in the constructor.
    """

    def __init__(self, package: str) -> None:
        self._served: dict[str, _Asset] = {}
        self._templates: dict[str, Template] = {}
        for file in (files(package) / "static").iterdir():
            kind = file.name.rpartition(".")[2]
            if kind in {"html", "yml"}:
                self._templates[file.name] = Template(file.read_text("utf-8"))
            else:
                self._served[file.name] = _Asset(file.read_bytes(), CONTENT_TYPES[kind])

    def respond(self, name: str, request: Request) -> Response:
        """The answer to a request for the file `name`: 304 where the browser has it already, 404, or 405."""
        asset = self._served.get(name)
        if asset is None:
            return PlainTextResponse("Not found", 404)
        if request.method not in {"GET", "HEAD"}:
            return PlainTextResponse("Method not allowed", 405, {"Allow": "GET, HEAD"})
        # Always asked for anew, so that no page is ever made of files of two versions.
        headers = {"ETag": asset.etag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        if asset.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(asset.content, headers=headers, media_type=asset.content_type)

    def fill(self, name: str, **values: str) -> str:
        """The template `name` with `values`, which are HTML already. Raises KeyError for one that is missing."""
        return self._templates[name].substitute(values)
