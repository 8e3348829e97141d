"""The web server that plugins attach handlers to, and the ways to expose it."""

from worker.webhooks.config import WebhooksConfig
from worker.webhooks.server import ASGIHandler, Webhooks, open_webhooks

__all__ = ["ASGIHandler", "Webhooks", "WebhooksConfig", "open_webhooks"]
