"""The exposition is what Prometheus reads, and no input makes it grow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from bridge.metrics import MAX_SERIES, Metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    body, _ = metrics.exposition()
    found = list(text_string_to_metric_families(body.decode("utf-8")))
    assert len({f.name for f in found}) == len(found), "a family appears twice"
    return {family.name: family for family in found}


def value(metrics: Metrics, sample: str, **labels: str) -> float | None:
    """The value of ``callscribe_<sample>``, None when it is not there."""
    for family in families(metrics).values():
        for s in family.samples:
            if s.name == f"callscribe_{sample}" and s.labels == labels:
                return float(s.value)
    return None


def everything(metrics: Metrics, text: str) -> None:
    """Every event there is, with `text` wherever a string is taken."""
    metrics.call_started(text)
    metrics.call_ended(text, 1.0)
    metrics.call_refused(text)
    metrics.connection_refused(text)
    metrics.dropped(text, text)
    metrics.dropped("frames", text)
    metrics.step(0.01, 1)
    metrics.warned(text)
    metrics.step(0.01, 1)
    metrics.word_latency(text, 0.5)
    metrics.lateness(0.002)
    metrics.http_response(599)


COUNTED: list[tuple[Callable[[Metrics], None], str, dict[str, str], float]] = [
    (lambda m: m.call_started("audiosocket"), "calls_started_total", {"ingress": "audiosocket"}, 1),
    (lambda m: m.call_started("pigeon"), "calls_started_total", {"ingress": "other"}, 1),
    (lambda m: m.call_ended("hangup", 61.0), "calls_ended_total", {"reason": "hangup"}, 1),
    (lambda m: m.call_ended("hangup", 61.0), "call_duration_seconds_sum", {}, 61),
    (lambda m: m.call_refused("not ready"), "calls_refused_total", {"reason": "not ready"}, 1),
    (
        lambda m: m.connection_refused("address"),
        "connections_refused_total",
        {"reason": "address"},
        1,
    ),
    (lambda m: m.dropped("frames", "late"), "frames_dropped_total", {"reason": "late"}, 1),
    (lambda m: m.dropped("events", "no", 3), "events_dropped_total", {"reason": "other"}, 3),
    (lambda m: m.dropped("hats", "queue", 2), "other_dropped_total", {"reason": "queue"}, 2),
    (lambda m: m.warned("bad_digit"), "warnings_total", {"kind": "bad_digit"}, 1),
    (lambda m: m.step(0.015, 7), "engine_blocks_total", {}, 7),
    (lambda m: m.step(0.015, 7), "engine_step_seconds_bucket", {"le": "0.01"}, 0),
    (lambda m: m.step(0.015, 7), "engine_step_seconds_bucket", {"le": "0.02"}, 1),
    (
        lambda m: m.word_latency("final", 0.6),
        "word_latency_seconds_sum",
        {"stage": "final"},
        0.6,
    ),
    (lambda m: m.lateness(0.003), "loop_lateness_seconds_bucket", {"le": "0.005"}, 1),
    (lambda m: m.jitter(0.003), "rtp_jitter_seconds_bucket", {"le": "0.005"}, 1),
    (lambda m: m.warned("srtp_failed"), "warnings_total", {"kind": "srtp_failed"}, 1),
    (lambda m: m.http_response(401), "http_responses_total", {"status": "401"}, 1),
    (lambda m: m.http_response(418), "http_responses_total", {"status": "other"}, 1),
]


@pytest.mark.parametrize(("happen", "sample", "labels", "expected"), COUNTED)
def test_an_event_is_counted_where_it_belongs(
    happen: Callable[[Metrics], None], sample: str, labels: dict[str, str], expected: float
) -> None:
    metrics = Metrics()
    assert value(metrics, sample, **labels) == 0, "shown before its first event, for rate()"
    happen(metrics)
    assert value(metrics, sample, **labels) == expected


def test_names_follow_the_conventions() -> None:
    metrics = Metrics()
    metrics.watch("calls", "Running calls.", lambda: {(): 3})
    everything(metrics, "x")
    for family in families(metrics).values():
        assert family.name.startswith("callscribe_"), family.name
        assert family.documentation
        assert not any(s.name.endswith("_created") for s in family.samples)
        if family.type == "counter":
            # the parser takes the suffix off the family's name
            assert all(s.name.endswith("_total") for s in family.samples), family.name
        else:
            assert not family.name.endswith("_total"), family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds"), family.name
        assert not family.name.endswith(("_ms", "_milliseconds", "_percent", "_kb"))


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("engine_step_seconds", 0.001, 1.0),
        ("word_latency_seconds", 0.05, 10.0),
        ("loop_lateness_seconds", 0.001, 1.0),
        ("rtp_jitter_seconds", 0.0005, 0.5),
    ],
)
def test_buckets_span_what_they_are_for(name: str, lowest: float, highest: float) -> None:
    samples = families(Metrics())[f"callscribe_{name}"].samples
    bounds = sorted({float(s.labels["le"]) for s in samples if s.name.endswith("_bucket")})
    assert (bounds[0], bounds[-2], bounds[-1]) == (lowest, highest, float("inf"))


@settings(max_examples=20, deadline=None)
@given(st.text())
def test_nothing_that_is_sent_becomes_a_label(text: str) -> None:
    assert series_after(f"{text} 3f2c") == untouched()


@cache
def untouched() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return series_after("other")


def series_after(text: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    metrics = Metrics()
    everything(metrics, text)
    found = families(metrics).values()
    return {(s.name, tuple(sorted(s.labels.items()))) for f in found for s in f.samples}


def test_the_number_of_series_is_bounded() -> None:
    metrics = Metrics()
    for i in range(500):
        everything(metrics, f"value {i}")
    assert sum(len(f.samples) for f in families(metrics).values()) < 300


def test_two_bridges_count_apart_and_share_nothing_global() -> None:
    one, other = Metrics(), Metrics()
    one.step(0.01, 5)
    assert (value(one, "engine_blocks_total"), value(other, "engine_blocks_total")) == (5, 0)
    assert not any(f.name.startswith("callscribe") for f in REGISTRY.collect())


def test_content_type_is_prometheus_text() -> None:
    _, content_type = Metrics().exposition()
    assert content_type.startswith("text/plain; version=")
    assert content_type.endswith("charset=utf-8")


def test_the_build_and_the_process_are_shown() -> None:
    from bridge import __version__

    metrics = Metrics()
    assert value(metrics, "build_info", version=__version__) == 1
    assert (value(metrics, "process_resident_memory_bytes") or 0) > 1e6


# -- watched values -----------------------------------------------------------------------------


def test_a_watched_value_is_read_at_each_scrape() -> None:
    metrics, slots = Metrics(), {("free",): 8.0, ("active",): 0.0}
    metrics.watch("slots", "Slots.", lambda: slots, labels=["state"])
    assert value(metrics, "slots", state="free") == 8
    slots[("free",)] = 7
    assert value(metrics, "slots", state="free") == 7
    assert families(metrics)["callscribe_slots"].type == "gauge"


def test_a_watched_counter_is_a_counter() -> None:
    metrics = Metrics()
    metrics.watch("sent_total", "Sent.", lambda: {("ami",): 4}, labels=["sink"], kind="counter")
    assert value(metrics, "sent_total", sink="ami") == 4
    assert families(metrics)["callscribe_sent"].type == "counter"


def test_the_prefix_may_be_given() -> None:
    metrics = Metrics()
    metrics.watch("callscribe_legs", "Legs.", lambda: {(): 2})
    assert value(metrics, "legs") == 2


def test_a_label_value_is_escaped() -> None:
    metrics, name = Metrics(), 'a"b\\c\nd'
    metrics.watch("sink_queue", "Queue.", lambda: {(name,): 1}, labels=["sink"])
    assert value(metrics, "sink_queue", sink=name) == 1


@pytest.mark.parametrize(
    "reading",
    [{("a", "b"): 1.0}, {(): 1.0}, {"a": 1.0}, {("a",): "many"}, {("a",): None}, None],
    ids=["labels", "no-labels", "no-tuple", "text", "none", "nothing"],
)
def test_a_wrong_reading_costs_only_itself(reading: object) -> None:
    metrics = Metrics()
    metrics.watch("broken", "Broken.", lambda: reading, labels=["x"])  # type: ignore[arg-type, return-value]
    metrics.step(0.01, 1)
    assert value(metrics, "scrape_failures_total", metric="broken") == 1
    assert value(metrics, "engine_blocks_total") == 1
    assert families(metrics)["callscribe_broken"].samples == []


def test_a_reading_that_raises_is_counted_in_the_same_scrape_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics, broken = Metrics(), [True]

    def read() -> dict[tuple[str, ...], float]:
        if broken:
            raise RuntimeError("secret words of a call")
        return {(): 5}

    metrics.watch("fragile", "Fragile.", read)
    metrics.watch("calls", "Calls.", lambda: {(): 3})
    with caplog.at_level(logging.WARNING):
        assert value(metrics, "scrape_failures_total", metric="fragile") == 1
        assert value(metrics, "calls") == 3
    assert caplog.messages == ["metric callscribe_fragile cannot be read: RuntimeError"]
    broken.clear()
    assert value(metrics, "fragile") == 5
    assert value(metrics, "scrape_failures_total", metric="fragile") == 2


def test_too_many_series_are_cut_and_counted() -> None:
    metrics = Metrics()
    metrics.watch(
        "ids", "Ids.", lambda: {(str(i),): 1.0 for i in range(MAX_SERIES + 1)}, labels=["id"]
    )
    assert len(families(metrics)["callscribe_ids"].samples) == MAX_SERIES
    assert value(metrics, "scrape_failures_total", metric="ids") == 2


@pytest.mark.parametrize(("name", "kind"), [("sent", "counter"), ("calls_total", "gauge")])
def test_a_watched_name_must_fit_its_kind(name: str, kind: str) -> None:
    with pytest.raises(ValueError, match="end in _total"):
        Metrics().watch(name, "x", lambda: {}, kind=kind)  # type: ignore[arg-type]


def test_a_name_can_be_watched_once() -> None:
    metrics = Metrics()
    metrics.watch("calls", "Calls.", lambda: {(): 1})
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.watch("calls", "Calls.", lambda: {(): 2})
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.watch("engine_blocks_total", "Blocks.", lambda: {}, kind="counter")
    assert value(metrics, "calls") == 1
