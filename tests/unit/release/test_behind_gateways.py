"""Releases behind gateways: in two runs, and what the gateways send to always answers."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import World
from fakes import DIGEST, Killed
from groundcrew.errors import GroundcrewError
from groundcrew.release import ReleaseError, Report
from groundcrew.service_map import parse_services
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FAMILY = {"family": "prediction"}


class Fleet:
    """A host and the gateways before it, as role container_service drives them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sent_to: list[int] = []
        self.fault = ""  # "dead": no gateway answers; "refusing": a new release is never up for it

    def ready(self, *services: dict[str, Any]) -> Report:
        return self.world.releaser(**FAMILY).run(parse_services(list(services)), hold=True)

    def tell(self) -> None:
        self.world.engine._call("tell the gateways")
        serving = self.world.releaser(**FAMILY).serving()
        if self.fault == "dead" or (self.fault == "refusing" and serving != self.sent_to):
            raise GroundcrewError(f"the gateway is {self.fault}")
        self.sent_to = serving

    def settle(self) -> None:
        self.world.releaser(**FAMILY).settle()

    def deploy(self, *services: dict[str, Any]) -> None:
        for _ in range(3):
            report = self.ready(*services)
            self.end(report)
            if not report.again:
                return
        raise AssertionError("it never ends")

    def rollback(self, name: str) -> Report:
        report = self.world.releaser(**FAMILY).rollback(name, hold=True)
        self.end(report)
        return report

    def end(self, report: Report) -> None:
        if not report.handed_over:
            self.tell()
            return
        try:
            self.tell()
        except GroundcrewError:
            self.world.releaser(**FAMILY).withdraw()
            self.tell()
            self.settle()
            raise
        self.settle()

    def answers(self) -> bool:
        """Whether everything that the gateways send to is there and answers right."""
        boxes = self.world.engine.boxes.values()
        good = {
            int(box.labels["groundcrew.ports"])
            for box in boxes
            if box.status == "running" and box.behaviour == "good"
        }
        return set(self.sent_to) <= good


@pytest.fixture
def fleet(world: World) -> Fleet:
    return Fleet(world)


def test_the_new_one_waits_beside_the_old_one(fleet: Fleet, a_service: Any) -> None:
    fleet.deploy(a_service())
    assert fleet.sent_to == [18080]
    report = fleet.ready(a_service(env={"WORKERS": 2}, drain_seconds=7))
    assert (report.handed_over, report.again) == (["digits-1"], False)
    assert report.drain_seconds == 30, "what is drained is the old one"
    assert fleet.world.status() == {"digits-1": "running", "digits-1-next": "running"}
    assert fleet.world.releaser(**FAMILY).serving() == [18081]
    # The gateways are told, or this process is killed; the same command again starts nothing anew.
    calls = len(fleet.world.engine.calls)
    again = fleet.ready(a_service(env={"WORKERS": 2}, drain_seconds=7))
    assert (again.handed_over, again.again) == (["digits-1"], False)
    assert not [c for c in fleet.world.engine.calls[calls:] if c.startswith(("start", "create"))]
    fleet.end(again)
    assert fleet.world.status() == {"digits-1": "running", "digits-1-previous": "exited"}
    assert fleet.sent_to == [18081]
    # And back to the first slot.
    fleet.deploy(a_service(env={"WORKERS": 3}))
    assert fleet.sent_to == [18080]


def test_a_new_version_takes_over_from_the_one_before(fleet: Fleet, a_service: Any) -> None:
    fleet.deploy(a_service())
    fleet.deploy(a_service(name="digits-2"))
    assert fleet.world.status() == {"digits-2": "running", "digits-2-previous": "exited"}
    assert fleet.sent_to == [18081]
    fleet.rollback("digits")
    assert fleet.world.status() == {"digits-1": "running", "digits-1-previous": "exited"}
    assert fleet.sent_to == [18080]


def test_a_bad_release_is_removed_and_takes_those_before_it_along(
    fleet: Fleet, a_service: Any
) -> None:
    two = [a_service(), a_service(name="digits_b-1", host_port=18082)]
    fleet.deploy(*two)
    with pytest.raises(ReleaseError, match=r"Release \w+ \(digits_b-1\) serves on"):
        fleet.deploy(
            a_service(env={"A": 1}), a_service("wrong", name="digits_b-1", host_port=18082)
        )
    assert fleet.world.status() == {"digits-1": "running", "digits_b-1": "running"}
    assert fleet.answers()


def test_a_gateway_that_refuses_takes_the_release_back(fleet: Fleet, a_service: Any) -> None:
    fleet.deploy(a_service())
    fleet.fault = "refusing"
    with pytest.raises(GroundcrewError, match="refusing"):
        fleet.deploy(a_service(env={"A": 1}))
    assert fleet.world.status() == {"digits-1": "running"}
    # So does a rollback, whose release is kept.
    fleet.fault = ""
    fleet.deploy(a_service(env={"A": 1}))
    fleet.fault = "refusing"
    with pytest.raises(GroundcrewError, match="refusing"):
        fleet.rollback("digits")
    assert fleet.world.status() == {"digits-1": "running", "digits-1-previous": "exited"}
    assert fleet.answers()


def test_while_a_gateway_does_not_answer_both_run(fleet: Fleet, a_service: Any) -> None:
    """It may send to either, whatever was told it before."""
    fleet.deploy(a_service())
    wanted = a_service(env={"A": 1})
    fleet.fault = "dead"
    with pytest.raises(GroundcrewError, match="dead"):
        fleet.deploy(wanted)
    assert fleet.world.status() == {"digits-1": "running", "digits-1-next": "running"}
    fleet.fault = ""
    fleet.deploy(wanted)
    assert fleet.world.status() == {"digits-1": "running", "digits-1-previous": "exited"}


def test_another_release_ends_the_hand_over_that_was_interrupted(
    fleet: Fleet, a_service: Any
) -> None:
    fleet.deploy(a_service())
    fleet.ready(a_service(env={"A": 1}))
    report = fleet.ready(a_service(env={"A": 2}))
    assert (report.again, report.handed_over) == (True, ["digits-1"])
    fleet.deploy(a_service(env={"A": 2}))
    assert fleet.world.status() == {"digits-1": "running", "digits-1-previous": "exited"}
    assert fleet.sent_to == [18080]


def test_one_that_died_after_the_hand_over_is_withdrawn(fleet: Fleet, a_service: Any) -> None:
    fleet.deploy(a_service())
    wanted = a_service(env={"A": 1})
    fleet.ready(wanted)
    fleet.world.engine.boxes["digits-1-next"].status = "exited"
    report = fleet.ready(wanted)
    assert report.again and fleet.world.releaser(**FAMILY).serving() == [18080]
    fleet.end(report)
    assert fleet.world.status() == {"digits-1": "running"}
    fleet.deploy(wanted)
    assert fleet.sent_to == [18081]


def test_what_is_no_longer_declared_runs_until_the_gateways_know(
    fleet: Fleet, a_service: Any
) -> None:
    two = [a_service(), a_service(name="digits_b-1", host_port=18082)]
    fleet.deploy(*two)
    report = fleet.ready(two[0])
    assert report.unwanted == ["digits_b-1"]
    assert fleet.world.status() == {"digits-1": "running", "digits_b-1": "running"}
    fleet.world.deploy(two[0])
    assert fleet.world.status() == {"digits-1": "running"}


def test_one_that_takes_turns_is_drained_first(fleet: Fleet, a_service: Any) -> None:
    alone = a_service(strategy="replace", drain_seconds=9)
    fleet.deploy(alone)
    changed = {**alone, "env": {"A": 1}}
    report = fleet.ready(changed)
    assert (report.replacing, report.handed_over) == (["digits-1"], [])
    assert report.drain_seconds == 9
    assert "stop digits-1" not in fleet.world.engine.calls
    fleet.world.deploy(changed, keep=True)
    assert fleet.world.status() == {"digits-1": "running", "digits-1-previous": "exited"}
    assert fleet.world.releaser(**FAMILY).serving() == [18080]
    # What is not declared any more runs until the gateways have been configured.
    fleet.world.deploy(changed, a_service(name="digits_b-1", host_port=18082))
    fleet.world.deploy(changed, keep=True)
    assert fleet.world.status()["digits_b-1"] == "running"


def test_a_full_disk_is_said_before_anything_is_pulled(fleet: Fleet, a_service: Any) -> None:
    fleet.deploy(a_service())
    fleet.world.engine.free = 2**30
    with pytest.raises(ReleaseError, match=r"1\.0 GiB are free.*docker system df.*serves on"):
        fleet.deploy(a_service(image="registry.example/stub@sha256:" + "b" * 64))
    assert not [c for c in fleet.world.engine.calls if c.startswith("pull")]


def test_one_that_starts_well_and_dies_soon_does_not_take_over(
    fleet: Fleet, a_service: Any
) -> None:
    proof = {**a_service()["ready"], "steady_seconds": 8}
    # With nothing to protect nobody waits.
    fleet.deploy(a_service(ready=proof))
    assert fleet.world.host.now < 2
    served = fleet.sent_to
    with pytest.raises(ReleaseError, match=r"was refused: .*serves on"):
        fleet.deploy(a_service("dies", ready=proof))
    assert fleet.sent_to == served and fleet.answers()
    assert fleet.world.status() == {"digits-1": "running"}
    # And a good one does, later.
    before = fleet.world.host.now
    fleet.deploy(a_service(ready=proof, env={"WORKERS": 2}))
    assert fleet.sent_to != served and fleet.answers()
    assert fleet.world.host.now - before >= 8


def test_images_are_fetched_before_a_release_and_not_twice(fleet: Fleet) -> None:
    there = "registry.example/stub@sha256:" + "c" * 64
    fleet.world.engine.images = {there}
    releaser = fleet.world.releaser(**FAMILY)
    assert releaser.pull([there, DIGEST], check=True) == [DIGEST]
    assert not [c for c in fleet.world.engine.calls if c.startswith("pull")]
    assert releaser.pull([there, DIGEST]) == [DIGEST]
    assert releaser.pull([there, DIGEST]) == []
    fleet.world.engine.free = 2**30
    with pytest.raises(GroundcrewError, match=r"1\.0 GiB are free"):
        releaser.pull(["registry.example/stub@sha256:" + "e" * 64])
    assert [c for c in fleet.world.engine.calls if c.startswith("pull")] == [f"pull {DIGEST}"]


def test_images_of_releases_that_are_gone_are_removed_and_those_of_kept_ones_are_not(
    fleet: Fleet, a_service: Any
) -> None:
    images = ["registry.example/stub@sha256:" + digit * 64 for digit in "abcd"]
    fleet.world.engine.images.update(images)
    for image in images:
        fleet.deploy(a_service(image=image))
    assert fleet.world.engine.images == set(images[2:])
    # Also when the release is refused.
    fleet.world.engine.images.add(images[0])
    with pytest.raises(ReleaseError):
        fleet.deploy(a_service("wrong", image=images[0]))
    assert fleet.world.engine.images == set(images[2:])


WISHES = st.tuples(
    st.sampled_from(["1", "2", "3"]),
    st.sampled_from(["good", "good", "exits", "wrong"]),
    st.integers(0, 1),
)
STEPS = st.lists(
    st.tuples(
        WISHES,
        st.none() | st.integers(0, 30),
        st.sampled_from(["", "dead", "refusing"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_is_killed_what_the_gateways_send_to_answers(a_service: Any, steps: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        fleet = Fleet(World(Path(directory)))
        engine = fleet.world.engine
        fleet.deploy(a_service())
        said = engine._call

        def watched(what: str) -> None:
            assert fleet.answers(), f"requests fail at: {what}"
            said(what)

        engine._call = watched  # type: ignore[method-assign]
        for (version, behaviour, workers), kill_at, fault, once in steps:
            wish = a_service(behaviour, name=f"digits-{version}", env={"WORKERS": workers})
            engine.revive()
            engine.kill_at = kill_at
            fleet.fault = fault
            with contextlib.suppress(Killed, GroundcrewError):
                fleet.deploy(wish)
            assert fleet.answers()
            engine.revive()
            fleet.fault = ""
            if once:
                continue
            # The same command again, and nobody interferes.
            try:
                fleet.deploy(wish)
            except ReleaseError:
                assert behaviour != "good", "a good release was refused"
            else:
                assert behaviour == "good"
                assert fleet.world.status()[f"digits-{version}"] == "running"
            assert fleet.answers() and len(fleet.sent_to) == 1
            assert not [name for name in engine.boxes if name.endswith("-next")]
