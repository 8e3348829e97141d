"""The pure parts: scopes, signatures, and the life of a task, where there are laws."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import taskcluster
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from mohawk import Sender

from worker.embedded import hawk, tasks
from worker.embedded.auth import Client, authenticate
from worker.embedded.errors import AuthenticationFailed, RequestConflict
from worker.embedded.scopes import AllOf, AnyOf, Each, missing, placeholders, satisfies
from worker.embedded.tasks import Task
from worker.embedded.times import from_wire, normal, to_wire

NOW = datetime(2026, 1, 31, tzinfo=UTC)
CLIENT = Client("some/client", "token", ("a:*", "auth:create-client:named/*"))


@pytest.mark.parametrize(
    ("scopes", "required", "expected"),
    [
        (["a:b"], "a:b", True),
        (["a:*"], "a:b", True),
        (["*"], "anything", True),
        (["a:b"], "a:bc", False),
        (["a:b*"], "a:", False),
        ([], "a", False),
    ],
)
def test_a_star_at_the_end_satisfies_what_begins_alike(scopes: list[str], required: str, expected: bool) -> None:
    assert satisfies(scopes, required) is expected


def test_expressions() -> None:
    each = Each("x:<item>", "item", "items")
    assert missing([], AllOf(), {}) == []
    assert missing(["x:1"], AllOf((each,)), {"items": ["1", "2"]}) == ["x:2"]
    assert missing(["x:2"], AnyOf((each,)), {"items": ["1", "2"]}) == []
    assert missing([], AnyOf((each,)), {"items": []}) == []
    assert placeholders(AllOf(("y:<z>", each))) == {"z", "items"}


@given(st.datetimes(timezones=st.timezones()))
def test_times_compare_as_text(moment: datetime) -> None:
    if not 1 < moment.year < 9999:
        return
    later = moment.astimezone(UTC) + timedelta(milliseconds=1)
    assert to_wire(moment) < to_wire(later)
    assert abs(from_wire(to_wire(moment)) - moment.astimezone(UTC)) < timedelta(milliseconds=1)
    assert normal(to_wire(moment)) == to_wire(moment)


@pytest.mark.parametrize("url", ["http://h/p?a=b", "https://h/x%2Fy", "http://h:8080/", "http://[::1]:99/p"])
@pytest.mark.parametrize(("method", "content", "kind"), [("GET", b"", ""), ("POST", b'{"a": 1}', "application/json")])
def test_what_mohawk_signs_is_accepted(url: str, method: str, content: bytes, kind: str) -> None:
    credentials = {"id": "some/client", "key": "token", "algorithm": "sha256"}
    stamp = int(NOW.timestamp())
    sender = Sender(credentials, url, method, content=content, content_type=kind, _timestamp=stamp)
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    host, port = hawk.host_and_port(authority, scheme)
    target = hawk.Target(method, slash + path, host, port)
    identity = authenticate({CLIENT.client_id: CLIENT}, target, sender.request_header, NOW)
    assert identity.client_id == "some/client"
    assert identity.payload_hash == hawk.payload_hash(content, kind)
    for other in (hawk.Target("PUT", slash + path, host, port), hawk.Target(method, "/other", host, port)):
        with pytest.raises(AuthenticationFailed, match="mac"):
            authenticate({CLIENT.client_id: CLIENT}, other, sender.request_header, NOW)


@given(st.text(max_size=200))
def test_a_header_that_is_no_signature_is_refused(header: str) -> None:
    with pytest.raises(AuthenticationFailed):
        hawk.parse_header(header)


@pytest.mark.parametrize("name", [None, "named/one"])
def test_credentials_of_the_official_package_are_accepted(name: str | None) -> None:
    scopes = ["a:b", "a:c*"]
    issued = taskcluster.createTemporaryCredentials(
        CLIENT.client_id, CLIENT.access_token, NOW, NOW + timedelta(hours=1), scopes, name=name
    )
    identity = _authenticate(issued, NOW)
    assert identity == (name or CLIENT.client_id, {"a:b", "a:c*", "queue:get-artifact:public/*"})
    assert _authenticate(issued, NOW + timedelta(hours=1, minutes=4))[0]
    with pytest.raises(AuthenticationFailed, match="expiry"):
        _authenticate(issued, NOW + timedelta(hours=1, minutes=6))
    with pytest.raises(AuthenticationFailed, match="start"):
        _authenticate(issued, NOW - timedelta(minutes=6))


@pytest.mark.parametrize(("name", "scopes"), [("other/name", ["a:b"]), (None, ["b"])])
def test_an_issuer_gives_only_what_it_has(name: str | None, scopes: list[str]) -> None:
    issued = taskcluster.createTemporaryCredentials(
        CLIENT.client_id, CLIENT.access_token, NOW, NOW + timedelta(hours=1), scopes, name=name
    )
    with pytest.raises(AuthenticationFailed):
        _authenticate(issued, NOW)


def test_a_certificate_with_more_scopes_is_forged() -> None:
    issued = taskcluster.createTemporaryCredentials(
        CLIENT.client_id, CLIENT.access_token, NOW, NOW + timedelta(hours=1), ["a:b"]
    )
    issued["certificate"] = issued["certificate"].replace("a:b", "a:*")
    with pytest.raises(AuthenticationFailed, match="signature"):
        _authenticate(issued, NOW)


def _authenticate(credentials: dict[str, str], now: datetime) -> tuple[str, set[str]]:
    client = taskcluster.Queue({"rootUrl": "http://h", "credentials": dict(credentials)})
    sender = Sender(
        {"id": credentials["clientId"], "key": credentials["accessToken"], "algorithm": "sha256"},
        "http://h/p",
        "GET",
        content="",
        content_type="",
        ext=client.makeHawkExt().decode(),
        _timestamp=int(now.timestamp()),
    )
    identity = authenticate({CLIENT.client_id: CLIENT}, hawk.Target("GET", "/p", "h", 80), sender.request_header, now)
    return identity.client_id, set(identity.scopes)


class TaskLife(RuleBasedStateMachine):
    """Whatever is asked of a task in whatever order, its record stays one that the schema can show."""

    def __init__(self) -> None:
        super().__init__()
        self.minute = 0
        self.task = Task(
            "T",
            {"deadline": to_wire(NOW + timedelta(hours=1)), "retries": 2},
            "lowest",
            2,
        )

    @property
    def now(self) -> str:
        return to_wire(NOW + timedelta(minutes=self.minute))

    def attempt(self, change: str, *args: object) -> None:
        before = self.task
        try:
            self.task = getattr(tasks, change)(self.task, *args)
        except RequestConflict:
            return
        assert self.task.runs[: len(before.runs) - 1] == before.runs[:-1], "runs that ended are history"

    @rule(change=st.sampled_from(["schedule", "rerun", "cancel", "meet_deadline"]))
    def queue_acts(self, change: str) -> None:
        self.attempt(change, self.now)

    @rule(minutes=st.integers(1, 20))
    def time_passes(self, minutes: int) -> None:
        self.minute += minutes

    @rule()
    def worker_claims(self) -> None:
        self.attempt("claim", "g", "w", self.now, to_wire(NOW + timedelta(minutes=self.minute + 20)))

    @rule()
    def claim_expires(self) -> None:
        if self.task.state == "running":
            self.attempt("expire_claim", self.now)

    @rule(
        end=st.sampled_from(
            [
                ("completed", "completed"),
                ("failed", "failed"),
                ("exception", "worker-shutdown"),
                ("exception", "intermittent-task"),
                ("exception", "malformed-payload"),
            ]
        )
    )
    def worker_reports(self, end: tuple[str, str]) -> None:
        if not self.task.runs:
            return
        run_id = len(self.task.runs) - 1
        self.attempt("report", run_id, *end, self.now)
        if self.task.runs[run_id].state == end[0] and self.task.runs[run_id].reason_resolved == end[1]:
            assert tasks.report(self.task, run_id, *end, self.now) == self.task, "to say it again changes nothing"

    @invariant()
    def only_the_last_run_is_unresolved(self) -> None:
        assert all(run.state in tasks.RESOLVED for run in self.task.runs[:-1])
        for run in self.task.runs:
            assert (run.resolved is not None) == (run.state in tasks.RESOLVED) == (run.reason_resolved is not None)
            assert run.state != "running" or run.taken_until is not None

    @invariant()
    def the_queue_acts_on_what_is_unresolved_and_nothing_else(self) -> None:
        assert (self.task.due is None) == (self.task.state in tasks.RESOLVED)
        assert 0 <= self.task.retries_left <= 2


TestTaskLife = TaskLife.TestCase
