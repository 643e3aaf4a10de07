"""Due times: crontab's fields, time zones, and the days on which clocks change."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from groundcrew import schedule
from hypothesis import given
from hypothesis import strategies as st

BERLIN = "Europe/Berlin"
SPRING, AUTUMN = date(2026, 3, 29), date(2026, 10, 25)


def local(moments, zone=BERLIN):
    return [moment.astimezone(ZoneInfo(zone)).strftime("%d %H:%M") for moment in moments]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("@daily", "five fields"),
        ("61 * * * *", "'61' is no minute"),
        ("* * * foo *", "'foo' is no month"),
        ("30-10 * * * *", "'30-10' is no minute"),
        ("5/10 * * * *", "'5/10' is no minute"),
        ("*/0 * * * *", "'*/0' is no minute"),
        (None, "five fields"),
    ],
)
def test_what_cron_refuses(text, said):
    assert said in schedule.fault(text)


@pytest.mark.parametrize("text", ["*/5 1-3 * jan mon-fri", "0,30 0 1-31/2 * 7", "* * * * *"])
def test_what_cron_accepts(text):
    assert schedule.fault(text) == ""


@pytest.mark.parametrize("zone", ["Mars/Phobos", "../etc/passwd", "", None, 7])
def test_unknown_zones_are_named(zone):
    assert repr(zone) in schedule.zone_fault(zone)


def test_a_skipped_time_is_made_up_for_when_the_gap_ends():
    moments = list(schedule.due_times("30 2 * * *", BERLIN, SPRING, SPRING))
    assert local(moments) == ["29 03:30"]


def test_a_time_that_comes_twice_counts_once():
    moments = list(schedule.due_times("30 2 * * *", BERLIN, AUTUMN, AUTUMN))
    assert moments == [datetime(2026, 10, 25, 0, 30, tzinfo=UTC)]


def test_every_hour_follows_the_wall_clock_both_times():
    assert len(list(schedule.due_times("0 * * * *", BERLIN, AUTUMN, AUTUMN))) == 25
    assert len(list(schedule.due_times("0 * * * *", BERLIN, SPRING, SPRING))) == 23


def test_day_of_month_or_day_of_week():
    days = [
        m.day
        for m in schedule.due_times("0 0 13 * fri", "UTC", date(2026, 11, 1), date(2026, 11, 30))
    ]
    assert days == [6, 13, 20, 27]
    both = [
        m.day
        for m in schedule.due_times("0 0 */2 * fri", "UTC", date(2026, 11, 1), date(2026, 11, 30))
    ]
    assert both == [13, 27]


def test_sunday_has_two_numbers():
    week = (date(2026, 11, 23), date(2026, 11, 29))
    assert list(schedule.due_times("0 0 * * 0", "UTC", *week)) == list(
        schedule.due_times("0 0 * * 7", "UTC", *week)
    )


def test_previous_and_following():
    now = datetime(2026, 11, 27, 2, 30, tzinfo=UTC)
    assert schedule.previous("30 2 * * *", "UTC", now) == now
    assert schedule.following("30 2 * * *", "UTC", now) == now + timedelta(days=1)
    assert schedule.previous("0 0 29 2 *", "UTC", now) == datetime(2024, 2, 29, tzinfo=UTC)
    assert schedule.previous("0 0 31 2 *", "UTC", now) is None
    assert schedule.following("0 0 31 2 *", "UTC", now) is None


def test_longest_gap():
    assert schedule.longest_gap("0 6 * * mon-fri", "UTC", date(2026, 1, 1)) == timedelta(days=3)
    # The night on which clocks go back is longer.
    assert schedule.longest_gap("30 4 * * *", BERLIN, date(2026, 1, 1)) == timedelta(hours=25)


def test_the_line_of_a_host_on_utc():
    assert schedule.cron_fields("30  2 * * *", "UTC", SPRING) == "30 2 * * *"
    assert schedule.cron_fields("30 2 * * *", BERLIN, SPRING) == "30 * * * *"
    assert schedule.cron_fields("0 2 * * *", "Asia/Kathmandu", SPRING) == "15 * * * *"
    assert schedule.cron_fields("0 2 * * *", "Australia/Lord_Howe", SPRING) == "0,30 * * * *"


@given(
    st.sampled_from([BERLIN, "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"]),
    st.integers(0, 59),
    st.integers(0, 23),
    st.integers(0, 700),
)
def test_a_daily_job_is_due_once_a_day_and_the_host_s_line_fires_then(zone, minute, hour, ahead):
    text = f"{minute} {hour} * * *"
    day = date(2026, 1, 1) + timedelta(days=ahead)
    (moment,) = schedule.due_times(text, zone, day, day)
    assert schedule.local_date(moment, zone).date() == day
    assert schedule.previous(text, zone, moment) == moment
    minutes = schedule.cron_fields(text, zone, day - timedelta(days=30)).split()[0].split(",")
    assert str(moment.minute) in minutes
