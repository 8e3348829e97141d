"""Many streams over one websocket, as a machine without I/O (taskcluster websocktunnel, wsmux).

`Connection` is one end of it, the worker's or the tunnel server's. `frames` is the wire, `streams` the tables of states
and the credit, `limits` what it may hold, `events` what it tells. Pings and reconnecting are the caller's.
"""

from worker.webhooks.wsmux.connection import Connection
from worker.webhooks.wsmux.events import Aborted, Accepted, CreditGained, Data, Event, Finished, Offered, Reason
from worker.webhooks.wsmux.frames import CLOSE_CODE, HEADER, ProtocolError
from worker.webhooks.wsmux.limits import Limits, Role, Statistics
from worker.webhooks.wsmux.streams import LocalProtocolError

__all__ = [
    "CLOSE_CODE",
    "HEADER",
    "Aborted",
    "Accepted",
    "Connection",
    "CreditGained",
    "Data",
    "Event",
    "Finished",
    "Limits",
    "LocalProtocolError",
    "Offered",
    "ProtocolError",
    "Reason",
    "Role",
    "Statistics",
]
