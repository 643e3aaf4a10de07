"""The release state machine against an engine in memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import World
from fakes import Box, Killed
from groundcrew.errors import GroundcrewError
from groundcrew.release import Outcome, ReleaseError, lock, summary, without_engine
from groundcrew.service_map import parse_services
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def actions(outcomes: list[Outcome]) -> list[tuple[str, str]]:
    return [(outcome.name, outcome.action) for outcome in outcomes]


def test_the_first_release_is_created_and_the_second_run_only_looks(
    world: World, a_service: Any
) -> None:
    (outcome,) = world.deploy(a_service())
    assert (outcome.action, outcome.changed, len(outcome.release)) == ("created", True, 12)
    assert outcome.ready_ms is not None
    assert world.status() == {"digits-1": "running"}
    (outcome,) = world.deploy(a_service())
    assert (outcome.action, outcome.changed) == ("none", False)
    assert world.engine.calls == ["containers"]


def test_a_change_keeps_the_release_before_it(world: World, a_service: Any) -> None:
    world.deploy(a_service())
    (outcome,) = world.deploy(a_service(env={"WORKERS": 2}))
    assert (outcome.action, outcome.changes) == ("replaced", ["env.WORKERS"])
    assert world.status() == {"digits-1": "running", "digits-1-previous": "exited"}
    directories = {path.name for path in (world.state / "digits-1").iterdir()}
    assert directories == {box.labels["groundcrew.release"] for box in world.engine.boxes.values()}
    # Only one is kept.
    world.deploy(a_service(env={"WORKERS": 3}))
    assert world.status() == {"digits-1": "running", "digits-1-previous": "exited"}
    assert len(list((world.state / "digits-1").iterdir())) == 2


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("exits", "exited with code 3"),
        ("restarts", "started again by the engine"),
        ("silent", "not ready within 60 s. Last readiness answer: timed out"),
        ("wrong", "Last readiness answer: a wrong answer"),
    ],
)
def test_a_bad_release_is_removed_and_the_old_one_serves_again(
    world: World, a_service: Any, behaviour: str, said: str
) -> None:
    (good,) = world.deploy(a_service())
    with pytest.raises(ReleaseError, match="was refused") as failure:
        world.deploy(a_service(behaviour))
    assert said in str(failure.value)
    assert "last words of digits-1-next" in str(failure.value)
    assert f"Release {good.release} (digits-1) serves on." in str(failure.value)
    assert world.status() == {"digits-1": "running"}
    assert world.engine.boxes["digits-1"].behaviour == "good"
    assert [path.name for path in (world.state / "digits-1").iterdir()] == [good.release]


def test_a_bad_first_release_leaves_nothing(world: World, a_service: Any) -> None:
    with pytest.raises(ReleaseError, match="no release before it, so nothing serves"):
        world.deploy(a_service("exits"))
    assert world.status() == {}
    assert not (world.state / "digits-1").exists()


def test_what_can_fail_early_fails_while_the_old_one_serves(world: World, a_service: Any) -> None:
    world.deploy(a_service())
    with pytest.raises(ReleaseError, match="manifest unknown.*serves on"):
        world.deploy(a_service(image="registry.example/stub@sha256:" + "b" * 64))
    with pytest.raises(GroundcrewError, match="/missing does not exist"):
        world.deploy(a_service(mounts=[{"source": "/missing", "target": "/models"}]))
    world.host.foreign_ports = {18090}
    with pytest.raises(ReleaseError, match="10.0.0.1:18090 cannot be listened on"):
        world.deploy(a_service(host_port=18090))
    assert not [call for call in world.engine.calls if call.startswith(("stop", "start"))]
    assert world.status() == {"digits-1": "running"}


def test_a_stopped_container_of_the_same_release_is_started(world: World, a_service: Any) -> None:
    world.deploy(a_service())
    for state in ("exited", "created", "paused", "restarting"):
        world.engine.boxes["digits-1"].status = state
        (outcome,) = world.deploy(a_service())
        assert outcome.action == "started"
        assert world.status() == {"digits-1": "running"}


def test_one_that_does_not_come_back_is_left_for_a_look(world: World, a_service: Any) -> None:
    world.deploy(a_service())
    world.engine.boxes["digits-1"].status = "exited"
    world.engine.boxes["digits-1"].behaviour = "exits"
    with pytest.raises(
        ReleaseError, match=r"did not come back.*Nothing was removed.*(?s:.*)last words"
    ):
        world.deploy(a_service())
    assert world.status() == {"digits-1": "exited"}


def test_a_new_version_takes_over_the_port_and_the_old_one_is_its_way_back(
    world: World, a_service: Any
) -> None:
    world.deploy(a_service())
    with pytest.raises(ReleaseError, match=r"\(digits-1\) serves on"):
        world.deploy(a_service("exits", name="digits-2"))
    assert world.status() == {"digits-1": "running"}
    outcomes = world.deploy(a_service(name="digits-2"))
    assert actions(outcomes) == [("digits-2", "created"), ("digits-1", "removed")]
    assert world.status() == {"digits-2": "running", "digits-2-previous": "exited"}
    assert world.engine.boxes["digits-2-previous"].labels["groundcrew.service"] == "digits-1"
    # The files of the one that is kept are kept.
    assert (world.state / "digits-1").is_dir()
    assert actions(world.deploy(a_service(name="digits-2"))) == [("digits-2", "none")]


def test_a_service_that_fails_to_move_serves_on_where_it_was(world: World, a_service: Any) -> None:
    world.deploy(a_service())
    with pytest.raises(ReleaseError):
        world.deploy(a_service(name="digits-2"), a_service("exits", host_port=18082))
    assert world.status() == {"digits-1": "running", "digits-2": "running"}
    outcomes = world.deploy(a_service())
    assert actions(outcomes) == [("digits-1", "none"), ("digits-2", "removed")]
    assert world.status() == {"digits-1": "running"}


def test_two_services_may_swap_their_ports(world: World, a_service: Any) -> None:
    world.deploy(a_service(), a_service(name="digits-2", host_port=18082))
    swapped = [a_service(name="digits-2"), a_service(host_port=18082)]
    assert actions(world.deploy(*swapped)) == [("digits-2", "replaced"), ("digits-1", "replaced")]
    assert world.status()["digits-1"] == world.status()["digits-2"] == "running"
    assert actions(world.deploy(*swapped)) == [("digits-2", "none"), ("digits-1", "none")]


def test_a_port_of_another_family_is_refused_before_anything_is_touched(
    world: World, a_service: Any
) -> None:
    world.deploy(a_service(name="web"), family="application")
    with pytest.raises(GroundcrewError, match="port 18080 is service web's"):
        world.deploy(a_service())
    assert world.engine.calls == ["containers"]


def test_removal_by_family_by_name_and_by_map(world: World, a_service: Any) -> None:
    two = [a_service(), a_service(name="digits-2", host_port=18082)]
    world.deploy(*two)
    world.deploy(a_service(name="web", host_port=18084), family="application")
    assert actions(world.deploy(two[0])) == [("digits-1", "none"), ("digits-2", "removed")]
    assert actions(world.deploy(family="", remove=["web", "never"])) == [
        ("web", "removed"),
        ("never", "absent"),
    ]
    assert actions(world.deploy({"name": "digits-1", "absent": True})) == [("digits-1", "removed")]
    assert world.status() == {}
    assert [path for path in world.state.iterdir() if path.is_dir()] == []


def test_the_first_failure_stops_the_rest_and_says_what_was_done(
    world: World, a_service: Any
) -> None:
    with pytest.raises(ReleaseError) as failure:
        world.deploy(
            a_service(),
            a_service("exits", name="digits-2", host_port=18082),
            a_service(name="digits-3", host_port=18084),
        )
    assert actions(failure.value.done) == [("digits-1", "created")]
    assert world.status() == {"digits-1": "running"}


def test_check_mode_touches_nothing(world: World, a_service: Any) -> None:
    world.deploy(a_service(), a_service(name="digits-2", host_port=18082))
    before = sorted(world.state.rglob("*"))
    outcomes = world.deploy(a_service(env={"A": 1}, env_file=["/missing/aws.env"]), check=True)
    assert actions(outcomes) == [("digits-1", "replaced"), ("digits-2", "removed")]
    assert world.engine.calls == ["containers"]
    assert sorted(world.state.rglob("*")) == before
    (outcome, gone) = without_engine(parse_services([a_service()]), ["web"], "10.0.0.1")
    assert (outcome.action, outcome.changed, gone.changed) == ("created", True, False)


def test_a_foreign_container_of_the_same_name_is_left_alone(world: World, a_service: Any) -> None:
    for name in ("digits-1", "digits-1-previous"):
        world.engine.boxes = {name: Box("running", {}, "good")}
        with pytest.raises(GroundcrewError, match=f"named {name} exists that is not a release"):
            world.deploy(a_service())
        world.deploy(remove=["digits-1"])
        assert world.status() == {name: "running"}


def test_secrets_are_0400_files_in_a_0700_directory_and_in_no_record(
    world: World, a_service: Any
) -> None:
    service = a_service(
        secrets={"/run/secrets/api_key": "hush", "/run/other/api_key": "hush2"},
        config={"/etc/x.conf": "x = 1"},
    )
    (outcome,) = world.deploy(service)
    directory = world.state / "digits-1" / outcome.release
    assert stat.S_IMODE((directory / "secrets").stat().st_mode) == 0o700
    secrets = sorted((directory / "secrets").iterdir())
    assert [stat.S_IMODE(path.stat().st_mode) for path in secrets] == [0o400, 0o400]
    assert {path.read_text() for path in secrets} == {"hush", "hush2"}
    assert [path.read_text() for path in (directory / "config").iterdir()] == ["x = 1"]
    assert stat.S_IMODE((directory / "release.json").stat().st_mode) == 0o600
    assert "hush" not in (directory / "release.json").read_text()
    (outcome,) = world.deploy({**service, "secrets": {"/run/secrets/api_key": "new"}})
    said = summary(outcome)
    assert (
        "secrets./run/secrets/api_key differs" in said
        and "secrets./run/other/api_key differs" in said
    )
    assert "hush" not in said and "new" not in said


def test_env_file_content_is_part_of_the_release(
    world: World, a_service: Any, tmp_path: Path
) -> None:
    env_file = tmp_path / "aws.env"
    env_file.write_text("A=1\n")
    service = a_service(env_file=[str(env_file)])
    world.deploy(service)
    env_file.write_text("A=2\n")
    (outcome,) = world.deploy(service)
    assert outcome.changes == [f"env_file content.{env_file}"]
    env_file.unlink()
    with pytest.raises(GroundcrewError, match="cannot read env_file"):
        world.deploy(service)


def test_running_seconds_has_to_pass(world: World, a_service: Any) -> None:
    before = world.host.now
    world.deploy(a_service(ready={"path": "/healthz", "running_seconds": 5}))
    assert world.host.now - before >= 5
    before = world.host.now
    world.deploy(a_service(ready={}))
    assert world.host.now - before >= 2


def _hold(directory: str, ready: Any, done: Any) -> None:
    with lock(directory):
        ready.set()
        done.wait(30)


def test_the_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), ready, done))
    holder.start()
    try:
        assert ready.wait(30)
        with (
            pytest.raises(GroundcrewError, match=f"process {holder.pid}"),
            lock(str(tmp_path), seconds=0.3),
        ):
            pass
    finally:
        holder.kill()
        holder.join()
    with lock(str(tmp_path), seconds=5):
        pass


BEHAVIOURS = st.sampled_from(["good", "good", "good", "exits", "restarts", "silent", "wrong"])
# What is deployed: for each version, the port (by index) and what it is like.
WISHES = st.dictionaries(
    st.sampled_from(["1", "2", "3"]), st.tuples(BEHAVIOURS, st.integers(0, 1)), max_size=2
).filter(lambda wish: len(wish) < 2 or len(set(wish.values())) == 2)
STEPS = st.lists(st.tuples(WISHES, st.none() | st.integers(0, 40)), min_size=1, max_size=6)


def _invariants(world: World, good_once: bool) -> None:
    engine = world.engine
    running = [box for box in engine.boxes.values() if box.status == "running"]
    ports = [box.labels["groundcrew.ports"] for box in running]
    assert len(ports) == len(set(ports)), "two containers on one port"
    if good_once:
        assert any(box.behaviour == "good" for box in engine.boxes.values()), (
            "the way back was lost"
        )


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_sequence_of_releases_killed_anywhere_converges(a_service: Any, steps: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory))
        good_once = False
        for wish, kill_at in steps:
            services = [
                a_service(behaviour, name=f"digits-{version}", host_port=18080 + 2 * port)
                for version, (behaviour, port) in wish.items()
            ]
            if len({service["host_port"] for service in services}) < len(services):
                services = services[:1]
            good_before = good_once and bool(services)
            world.engine.revive()
            world.engine.kill_at = kill_at
            try:
                world.resume(*services)
            except Killed:
                _invariants(world, good_before)
            except ReleaseError:
                pass
            # The same command again, and this time nobody interferes.
            try:
                world.deploy(*services)
            except ReleaseError:
                bad = [service for service in services if service["env"]["BEHAVIOUR"] != "good"]
                assert bad, "a good release was refused"
            else:
                names = {service["name"] for service in services}
                live = {n for n in world.engine.boxes if not n.endswith(("-next", "-previous"))}
                assert live == names
                assert all(world.engine.boxes[name].status == "running" for name in names)
                assert all(world.engine.boxes[name].behaviour == "good" for name in names)
                assert actions(world.deploy(*services)) == [
                    (service["name"], "none") for service in services
                ]
                good_once = bool(services)
            assert not [name for name in world.engine.boxes if name.endswith("-next")]
            _invariants(world, good_once and bool(services))


@pytest.mark.parametrize("kill_at", range(16))
def test_killed_at_each_step_then_a_bad_release_the_old_one_serves(
    world: World, a_service: Any, kill_at: int
) -> None:
    """Whatever the interruption left, a good one serves after the next release failed."""
    world.deploy(a_service())
    world.deploy(a_service(env={"WORKERS": 2}))
    world.engine.revive()
    world.engine.kill_at = kill_at
    with contextlib.suppress(Killed):
        world.resume(a_service(env={"WORKERS": 3}))
    with pytest.raises(ReleaseError):
        world.deploy(a_service("exits"))
    assert world.status()["digits-1"] == "running"
    assert world.engine.boxes["digits-1"].behaviour == "good"


def test_a_rollback_goes_back_to_the_version_before_and_forward_again(
    world: World, a_service: Any
) -> None:
    (first,) = world.deploy(a_service())
    second, *_ = world.deploy(a_service(name="digits-2"))
    assert world.rollback("digits", check=True).changes == [f"digits-2, release {second.release}"]
    assert world.status() == {"digits-2": "running", "digits-2-previous": "exited"}
    outcome = world.rollback("digits")
    assert (outcome.name, outcome.release, outcome.changed) == ("digits-1", first.release, True)
    assert world.status() == {"digits-1": "running", "digits-1-previous": "exited"}
    assert world.engine.boxes["digits-1"].labels["groundcrew.release"] == first.release
    # What it left is as good a start as any other: the inventory's version, and then a rollback, again.
    assert actions(world.deploy(a_service(name="digits-2")))[0] == ("digits-2", "created")
    assert world.rollback("digits").name == "digits-1"
    assert world.rollback("digits").name == "digits-2"


def test_a_rollback_of_one_service_and_of_its_name(world: World, a_service: Any) -> None:
    (first,) = world.deploy(a_service())
    world.deploy(a_service(env={"WORKERS": 2}))
    assert world.rollback("digits-1").release == first.release
    assert world.status() == {"digits-1": "running", "digits-1-previous": "exited"}


def test_a_release_that_does_not_come_back_leaves_the_present_one(
    world: World, a_service: Any
) -> None:
    world.deploy(a_service())
    second, *_ = world.deploy(a_service(name="digits-2"))
    world.engine.boxes["digits-2-previous"].behaviour = "wrong"
    with pytest.raises(ReleaseError, match="did not come back.*a wrong answer") as failure:
        world.rollback("digits")
    assert f"Release {second.release} (digits-2) serves on" in str(failure.value)
    assert world.status() == {"digits-2": "running", "digits-2-previous": "exited"}


def test_a_rollback_needs_one_release_to_go_back_to(world: World, a_service: Any) -> None:
    world.deploy(a_service())
    with pytest.raises(GroundcrewError, match="nothing to go back to"):
        world.rollback("digits")
    two = [a_service(), a_service(name="digits-2", host_port=18082)]
    world.deploy(*two)
    world.deploy(*({**service, "command": ["again"]} for service in two))
    with pytest.raises(GroundcrewError, match="digits-1, digits-2. Name the one you mean"):
        world.rollback("digits")
    assert world.rollback("digits-2").name == "digits-2"


def test_a_rollback_killed_at_each_step_is_mended_by_a_deploy(world: World, a_service: Any) -> None:
    step = 0
    while True:
        world.deploy(remove=["digits-1", "digits-2"])
        world.deploy(a_service())
        world.deploy(a_service(name="digits-2"))
        world.engine.revive()
        world.engine.kill_at = step
        step += 1
        try:
            world.releaser().rollback("digits")
        except Killed:
            with contextlib.suppress(ReleaseError):  # it may say what it brought back
                world.deploy(a_service(name="digits-2"))
            world.deploy(a_service(name="digits-2"))
            assert world.status()["digits-2"] == "running"
        else:
            break
    assert step > 8
