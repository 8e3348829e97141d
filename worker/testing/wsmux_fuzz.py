"""A hostile peer and a careless application for `worker.webhooks.wsmux`, from a seed, beside an account of their own.

The account follows the protocol (taskcluster websocktunnel, wsmux) from the frames alone and says of each frame whether
it is allowed: the machine must take those that are, raise `ProtocolError` for the others, raise nothing else, and never
send what its peer has not allowed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from worker.webhooks.wsmux import (
    Aborted,
    Connection,
    Data,
    Event,
    Limits,
    LocalProtocolError,
    ProtocolError,
    Reason,
    Role,
    Statistics,
)

DAT, SYN, ACK, FIN = range(4)
LIMITS = Limits(
    window=40, accept_within=30, max_unaccepted=3, max_streams=5, max_frame=64, max_payload=16, max_unread=90
)
MAX_STEPS = 120
PEER_SENDS = (DAT, DAT, DAT, DAT, DAT, SYN, SYN, ACK, ACK, FIN)

Make = Callable[[Role, Limits], Connection]


@dataclass(slots=True)
class Account:
    """What both ends of a stream know of it. `ours` are those that the machine opened."""

    ours: bool
    accepted: bool = False
    machine_fin: bool = False
    peer_fin: bool = False
    machine_credit: int = 0
    peer_credit: int = 0
    unread: int = 0


def fuzz(seeds: Iterable[int], make: Make = Connection) -> Counter[str]:
    """Live through a sequence for each seed; returns how often what happened.

    Raises AssertionError with the seed and the last frames for the first that breaks a promise.
    """
    happened: Counter[str] = Counter()
    for seed in seeds:
        sequence = Sequence(seed, make, happened)
        try:
            sequence.live()
        except Exception as error:
            frames = "\n".join(sequence.machine.history())
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{frames}") from error
    return happened


class Sequence:
    """One seed."""

    def __init__(self, seed: int, make: Make, happened: Counter[str]) -> None:
        self.rng = random.Random(seed)  # noqa: S311  # to be repeated, not to be unguessable
        self.role = self.rng.choice((Role.SERVER, Role.CLIENT))
        self.machine = make(self.role, LIMITS)
        self.happened = happened
        self.accounts: dict[int, Account] = {}
        self.now = 0.0

    def live(self) -> None:
        """Let peer and application act in turn until the peer breaks the protocol or the connection ends."""
        actions = (self.peer_acts, self.peer_acts, self.application_acts)
        malice = self.rng.choice((0.0, 0.002, 0.05))
        for _ in range(self.rng.randint(5, MAX_STEPS)):
            if self.rng.random() < malice:
                message = self.garbage()
                if not self.feed(message):
                    break
            elif not self.rng.choice(actions)():
                break
        self.machine.check()
        unfinished = {i for i, each in self.accounts.items() if not (each.machine_fin and each.peer_fin)}
        lost = self.machine.connection_lost()
        assert sorted(e.stream_id for e in lost if isinstance(e, Aborted)) == sorted(unfinished), lost
        assert self.machine.statistics() == Statistics(0, 0, 0, 0)
        self.happened["sequence"] += 1

    # The peer

    def peer_acts(self) -> bool:
        rng = self.rng
        kind = rng.choice(PEER_SENDS) if self.accounts else SYN
        stream_id = self.some_id(new=kind == SYN)
        message = bytes([kind]) + stream_id.to_bytes(4, "little")
        account = self.accounts.get(stream_id)
        if kind == DAT:
            credit = account.peer_credit if account else 9
            message += rng.randbytes(
                credit + 1 if rng.random() < 0.02 else rng.choice((rng.randint(0, credit), credit))
            )
        elif kind == ACK:
            amount = 2**32 - 1 - rng.randint(0, 50) if rng.random() < 0.05 else rng.randint(0, 30)
            message += amount.to_bytes(4, "little")
        # Most of what is forbidden or ends a stream early is left out, so that sequences come to something.
        early = kind == FIN and account is not None and not account.accepted
        if rng.random() < (0.99 if not self.allows(message) else 0.8 if early else 0):
            return True
        return self.feed(message)

    def some_id(self, *, new: bool) -> int:
        if self.accounts and self.rng.random() < (0.05 if new else 0.95):
            return self.rng.choice(list(self.accounts))
        parity = 1 - self.role if self.rng.random() < 0.95 else self.role
        return 2 * self.rng.choice((self.rng.randint(0, 30), 2**31 - 1)) + parity

    def garbage(self) -> bytes | str:
        rng = self.rng
        match rng.randrange(4):
            case 0:
                return "text"
            case 1:
                return rng.randbytes(rng.randint(0, 12))
            case 2:
                return bytes([rng.randrange(6), rng.randrange(8), 0, 0, 0]) + rng.randbytes(rng.randint(0, 6))
            case _:
                return bytes([DAT, rng.randrange(8), 0, 0, 0]) + bytes(rng.randint(50, 70))

    def allows(self, message: bytes | str) -> bool:
        """Whether the protocol allows the peer to send this now."""
        if isinstance(message, str) or not 5 <= len(message) <= LIMITS.max_frame or message[0] > FIN:
            return False
        kind, stream_id, payload = message[0], int.from_bytes(message[1:5], "little"), message[5:]
        if len(payload) != {DAT: len(payload), ACK: 4}.get(kind, 0):
            return False
        account = self.accounts.get(stream_id)
        if kind == SYN:
            return account is None and stream_id % 2 != self.role
        if account is None:
            return True
        if kind == FIN:
            return not account.peer_fin
        if kind == ACK:
            credit = account.machine_credit + int.from_bytes(payload, "little")
            return (account.accepted or account.ours) and credit < 2**32
        return account.accepted and not account.peer_fin and len(payload) <= account.peer_credit

    def feed(self, message: bytes | str) -> bool:
        """Hand the message to the machine; returns whether the connection goes on."""
        allowed = self.allows(message)
        try:
            events = self.machine.receive(message, self.now)
        except ProtocolError:
            assert not allowed, f"refused {message!r}"
            self.happened["malformed"] += 1
            return False
        assert allowed, f"took {message!r}"
        assert isinstance(message, bytes)
        self.enter(message)
        self.settle(events)
        return True

    def enter(self, message: bytes) -> None:
        """Write what the peer sent into the accounts."""
        kind, stream_id, payload = message[0], int.from_bytes(message[1:5], "little"), message[5:]
        self.happened[("dat", "syn", "ack", "fin")[kind]] += 1
        if kind == SYN:
            self.accounts[stream_id] = Account(ours=False)
        account = self.accounts.get(stream_id)
        if account is None:
            self.happened["ignored"] += 1
        elif kind == DAT:
            account.peer_credit -= len(payload)
            account.unread += len(payload)
        elif kind == ACK:
            account.accepted = True
            account.machine_credit += int.from_bytes(payload, "little")
        elif kind == FIN:
            account.peer_fin = True

    # The machine

    def settle(self, events: list[Event]) -> bool:
        """Look at what the machine sends and tells."""
        for message in self.machine.take_messages():
            self.judge(message)
        for event in events:
            self.happened[type(event).__name__] += 1
            if isinstance(event, Aborted):
                self.happened[event.reason.name] += 1
                account = self.accounts.pop(event.stream_id)
                assert event.reason in Reason
                assert account.peer_fin or account.machine_fin, "aborted without a word to the peer"
            elif isinstance(event, Data):
                assert event.data
                assert event.stream_id in self.accounts
        for stream_id, account in list(self.accounts.items()):
            if account.machine_fin and account.peer_fin and not account.unread:
                del self.accounts[stream_id]
                self.happened["ended"] += 1
        held = self.machine.statistics()
        assert held.streams == len(self.accounts) <= LIMITS.max_streams
        assert held.unread == sum(account.unread for account in self.accounts.values()) <= LIMITS.max_unread
        assert held.outgoing == 0
        return True

    def judge(self, message: bytes) -> None:
        """The peer would take what the machine sends."""
        kind, stream_id, payload = message[0], int.from_bytes(message[1:5], "little"), message[5:]
        if kind == SYN:
            assert stream_id % 2 == self.role, stream_id
            assert stream_id not in self.accounts, stream_id
            self.accounts[stream_id] = Account(ours=True, peer_credit=LIMITS.window)
            return
        account = self.accounts[stream_id]
        if kind == FIN:
            assert not account.machine_fin, "a second FIN"
            account.machine_fin = True
        elif kind == ACK:
            assert not account.peer_fin or not account.accepted, "ACK after the peer's FIN"
            account.peer_credit += int.from_bytes(payload, "little")
            if not account.accepted:
                assert not account.ours
                account.accepted, account.machine_credit = True, LIMITS.window
            assert account.peer_credit + account.unread <= LIMITS.window, "credit beyond the window"
        else:
            assert kind == DAT
            assert account.accepted, "bytes before the ACK"
            assert not account.machine_fin, "bytes after the FIN"
            assert len(payload) <= account.machine_credit, "bytes without credit"
            account.machine_credit -= len(payload)

    # The application

    def application_acts(self) -> bool:
        rng = self.rng
        stream_id = rng.choice(list(self.accounts)) if self.accounts and rng.random() < 0.98 else rng.randrange(9)
        account = self.accounts.get(stream_id)
        live = account is not None and account.accepted and not account.machine_fin
        match rng.randrange(13):
            case 0 | 1:
                ours = sum(each.ours and not each.accepted for each in self.accounts.values())
                full = ours >= LIMITS.max_unaccepted or len(self.accounts) >= LIMITS.max_streams
                self.call(lambda: self.machine.open(self.now), allowed=not full)
            case 2 | 3 | 4:
                stream_id = next((i for i, each in self.accounts.items() if not each.accepted), stream_id)
                account = self.accounts.get(stream_id)
                offered = account is not None and not account.ours and not account.accepted
                self.call(lambda: self.machine.accept(stream_id), allowed=offered)
            case 5 | 6:
                most = self.machine.sendable(stream_id)
                assert most <= (account.machine_credit if account and live else 0)
                size = most + 1 if rng.random() < 0.1 else rng.randint(0, most)
                self.call(lambda: self.machine.send(stream_id, bytes(size)), allowed=live and size <= most)
            case 7:
                self.call(lambda: self.machine.finish(stream_id), allowed=live)
            case 8 | 9 | 10:
                self.consume(stream_id, account)
            case 11:
                self.machine.abandon(stream_id)
                for message in self.machine.take_messages():
                    self.judge(message)
                self.accounts.pop(stream_id, None)
            case _:
                self.now += rng.choice((0.1, 1.0, 1.0, 10.0, 31.0))
                self.settle(self.machine.expire(self.now))
                assert self.machine.deadline() > self.now
        return self.settle([])

    def consume(self, stream_id: int, account: Account | None) -> None:
        unread = account.unread if account else 0
        count = unread + 1 if self.rng.random() < 0.02 else self.rng.randint(0, unread)
        allowed = account is None or count <= unread
        if account and allowed:
            account.unread -= count
        self.call(lambda: self.machine.consumed(stream_id, count), allowed=allowed)

    def call(self, function: Callable[[], object], *, allowed: bool) -> None:
        """Call the machine, which must refuse what is not allowed, and send nothing then."""
        try:
            function()
        except LocalProtocolError:
            assert not allowed
            assert not self.machine.take_messages()
            self.happened["refused call"] += 1
        else:
            assert allowed
            self.happened["call"] += 1
