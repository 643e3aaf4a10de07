"""The circuit breaker against a model of it, and from many threads."""

from __future__ import annotations

import threading

from groundcrew_application.circuit import CLOSED, HALF_OPEN, OPEN, CircuitBreaker, Permit
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

FAILURES, PROBE_SECONDS = 3, 10.0


class AnyCalls(RuleBasedStateMachine):
    """Calls that begin and end in any order; the model says which state they lead to."""

    permits = Bundle("permits")

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.states: list[str] = []
        self.breaker = CircuitBreaker(
            FAILURES, PROBE_SECONDS, clock=lambda: self.now, changed=self.states.append
        )
        self.state, self.era, self.failures, self.opened = CLOSED, 0, 0, 0.0
        self.eras: dict[int, int] = {}
        self.expected_states: list[str] = []

    def _enter(self, state: str) -> None:
        self.state, self.failures = state, 0
        self.era += 1
        self.expected_states.append(state)

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.0, 10.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=permits)
    def acquire(self) -> tuple[Permit | None, int]:
        permit = self.breaker.acquire()
        if self.state == CLOSED:
            assert permit is not None
        elif self.state == HALF_OPEN or self.now < self.opened + PROBE_SECONDS:
            assert permit is None
        else:
            assert permit is not None
            self._enter(HALF_OPEN)
        return permit, self.era

    @rule(given=consumes(permits))
    def succeed(self, given: tuple[Permit | None, int]) -> None:
        permit, era = given
        if permit is None:
            return
        self.breaker.succeeded(permit)
        if era == self.era:
            self.failures = 0
            if self.state != CLOSED:
                self._enter(CLOSED)

    @rule(given=consumes(permits))
    def fail(self, given: tuple[Permit | None, int]) -> None:
        permit, era = given
        if permit is None:
            return
        self.breaker.failed(permit)
        if era == self.era:
            self.failures += 1
            if self.state == HALF_OPEN or self.failures >= FAILURES:
                self.opened = self.now
                self._enter(OPEN)

    @rule(given=consumes(permits))
    def abandon(self, given: tuple[Permit | None, int]) -> None:
        permit, era = given
        if permit is None:
            return
        self.breaker.abandoned(permit)
        if era == self.era and self.state == HALF_OPEN:
            self._enter(OPEN)

    @invariant()
    def as_the_model(self) -> None:
        assert self.breaker.state == self.state
        assert self.states == self.expected_states
        left = self.breaker.probe_in_seconds
        assert (left > 0) == (self.state == OPEN and self.now < self.opened + PROBE_SECONDS)


TestAnyCalls = AnyCalls.TestCase
TestAnyCalls.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_one_probe_at_a_time_from_many_threads() -> None:
    now = 0.0
    breaker = CircuitBreaker(1, 1.0, clock=lambda: now)
    first = breaker.acquire()
    assert first is not None
    breaker.failed(first)
    now = 2.0
    together = threading.Barrier(16)
    permits: list[Permit | None] = []

    def ask() -> None:
        together.wait()
        permits.append(breaker.acquire())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(permit is not None for permit in permits) == 1
