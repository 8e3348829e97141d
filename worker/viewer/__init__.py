"""The page that shows a log in a browser, live or stored: plain files, no build step, no other host."""

from worker.viewer.assets import Assets
from worker.viewer.headers import page_headers
from worker.viewer.view import LogView, Viewer

__all__ = ["Assets", "LogView", "Viewer", "page_headers"]
