"""The task's log: live over HTTP while the task runs, and as an artifact afterwards (facts page, section 4)."""

from plugins.livelog.payload import LiveLogPayload
from plugins.livelog.plugin import LiveLog, LiveLogConfig

__all__ = ["LiveLog", "LiveLogConfig", "LiveLogPayload"]
