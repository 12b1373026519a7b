"""What the bridge counts and times, as Prometheus reads it. The only owner of prometheus_client.

Every `Metrics` has a registry of its own, so several bridges fit in one process. Labels are closed
sets: a value that is not known here is counted as "other", so nothing that a peer sends can grow
the number of series, and no call id or text can become a label.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Generic, Literal, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from bridge import __version__
from bridge.load import Load

log = logging.getLogger(__name__)

PREFIX = "callscribe"
OTHER = "other"
MAX_SERIES = 256  # of one watched value; what it reads beyond them is counted, not shown

INGRESSES = (
    "audiosocket", "rtp", "l16", "twilio", "telnyx", "plivo", "vonage", "signalwire", "exotel",
    "audiohook", "asterisk", "freeswitch", "moshi", "stream", "stt", "pcm", "realtime", "deepgram",
)  # fmt: skip
REFUSED_CALLS = (
    "busy", "overload", "draining", "limit", "unannounced", "not ready", "duplicate",
    "outbox",
)  # fmt: skip
END_REASONS = (
    ("hangup", "eof", "reset", "timeout", "protocol", "bridge", "engine", "internal", "heard",
     "lost")
    + REFUSED_CALLS
)  # fmt: skip
REFUSED_CONNECTIONS = ("denied", "address", "limit", "deadline", "protocol", "no_uuid")
DROPPED = ("frames", "events", "announcements")
DROP_REASONS = ("queue", "waiting", "full", "late", "closed", "protocol", "limit", "expired")
WARNINGS = (
    "unknown_kind", "bad_digit", "peer_error", "mulaw_mislabelled", "odd_length", "unknown_type",
    "srtp_failed", "unknown_event", "early_media", "unknown_track", "duplicate",
)  # fmt: skip
STAGES = ("partial", "final", "deliver")
STATUSES = ("200", "201", "204", "400", "401", "403", "404", "405", "408", "409", "500", "503")

# A block is 80 ms of audio: a step beyond it falls behind, one below 40 ms can catch up.
STEP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.5, 1.0)
LATENCY_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
LATENESS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
JITTER_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
CALL_BUCKETS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)

M = TypeVar("M", bound=MetricWrapperBase)


class _Closed(Generic[M]):
    """A metric's children, one per combination of its labels' known values, made beforehand.

    A counter that shows up only with its first event hides that event from `rate()`.
    """

    def __init__(self, metric: M, *known: Sequence[str]) -> None:
        self._known = [frozenset(values) for values in known]
        sets: list[list[str]] = [[*values, OTHER] for values in known]
        self._children: dict[tuple[str, ...], M] = {
            key: metric.labels(*key) for key in product(*sets)
        }

    def of(self, *values: str) -> M:
        pairs = zip(values, self._known, strict=True)
        return self._children[tuple(v if v in known else OTHER for v, known in pairs)]


class Metrics:
    """All counters and histograms of one bridge. Its methods take microseconds and never block."""

    def __init__(self) -> None:
        self.last_step = 0.0  # s
        self.load = Load()
        self._registry = CollectorRegistry()
        ProcessCollector(namespace=PREFIX, registry=self._registry)
        build = Gauge(f"{PREFIX}_build_info", "Always 1.", ["version"], registry=self._registry)
        build.labels(__version__).set(1)
        self._make_calls()
        self._make_audio()
        self._make_engine()
        self._responses = self._counter(
            "http_responses", "Answers to HTTP requests.", status=STATUSES
        )
        # Not in the registry, so that a scrape can show its own failures (see `exposition`).
        self._scrape_failures = Counter(
            f"{PREFIX}_scrape_failures",
            "Watched values that could not be read, or had too many series, at a scrape.",
            ["metric"],
            registry=None,
        )

    def _make_calls(self) -> None:
        self._started = self._counter("calls_started", "Calls taken.", ingress=INGRESSES)
        self._ended = self._counter("calls_ended", "Calls that ended.", reason=END_REASONS)
        self._refused = self._counter("calls_refused", "Calls not taken.", reason=REFUSED_CALLS)
        self._connections = self._counter(
            "connections_refused", "Connections not taken or cut.", reason=REFUSED_CONNECTIONS
        )
        self._duration = self._histogram(
            "call_duration_seconds", "From a call's start to its end.", CALL_BUCKETS
        )

    def _make_audio(self) -> None:
        # One metric per kind, because frames, blocks and bytes do not add up.
        self._dropped = {
            what: self._counter(
                f"{what}_dropped", f"Lost to a bound or a fault: {what}.", reason=DROP_REASONS
            )
            for what in (*DROPPED, OTHER)
        }
        self._warnings = self._counter("warnings", "Oddities of peers.", kind=WARNINGS)
        self._lateness = self._histogram(
            "loop_lateness_seconds", "How late the event loop ran a timer.", LATENESS_BUCKETS
        )
        self._jitter = self._histogram(
            "rtp_jitter_seconds", "Of each leg, at its end (RFC 3550 A.8).", JITTER_BUCKETS
        )

    def _make_engine(self) -> None:
        self._steps = self._histogram(
            "engine_step_seconds", "Time of one batch step.", STEP_BUCKETS
        )
        self._blocks = Counter(
            f"{PREFIX}_engine_blocks", "Blocks recognised.", registry=self._registry
        )
        latency = Histogram(
            f"{PREFIX}_word_latency_seconds",
            "From the end of a word to the partial or the final that says it; "
            "deliver: from an event to the sink that took it.",
            ["stage"],
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._latency = _Closed(latency, STAGES)

    def _counter(self, name: str, documentation: str, **known: Sequence[str]) -> _Closed[Counter]:
        metric = Counter(f"{PREFIX}_{name}", documentation, list(known), registry=self._registry)
        return _Closed(metric, *known.values())

    def _histogram(self, name: str, documentation: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(
            f"{PREFIX}_{name}", documentation, buckets=buckets, registry=self._registry
        )

    # -- events ---------------------------------------------------------------------------------

    def call_started(self, ingress: str) -> None:
        self._started.of(ingress).inc()
        self.load.calls += 1

    def call_ended(self, reason: str, seconds: float) -> None:
        self._ended.of(reason).inc()
        self._duration.observe(seconds)

    def call_refused(self, reason: str) -> None:
        """`reason` is a `Refused.reason`; of ``limit:NAME`` what stands before the colon."""
        self._refused.of(reason.partition(":")[0]).inc()
        self.load.calls += 1
        self.load.refused += 1

    def connection_refused(self, reason: str) -> None:
        """`reason`: ``address``, ``limit``, ``deadline``, ``protocol``."""
        self._connections.of(reason).inc()

    def dropped(self, what: str, reason: str, n: int = 1) -> None:
        """`what`: ``frames``, ``blocks``, ``bytes``, ``events``, ``announcements``."""
        self._dropped.get(what, self._dropped[OTHER]).of(reason).inc(n)

    def warned(self, kind: str) -> None:
        """`kind` is a `Warned.kind`."""
        self._warnings.of(kind).inc()

    def step(self, seconds: float, active: int) -> None:
        """One batch step that took `seconds` and advanced `active` slots by a block."""
        self._steps.observe(seconds)
        self.last_step = seconds
        self._blocks.inc(active)

    def word_latency(self, stage: str, seconds: float) -> None:
        """`stage`: partial, final (since the end of a word), deliver (since the event)."""
        self._latency.of(stage).observe(seconds)
        self.load.word(stage, seconds)

    def lateness(self, seconds: float) -> None:
        self._lateness.observe(seconds)

    def jitter(self, seconds: float) -> None:
        """A leg of RTP is over."""
        self._jitter.observe(seconds)

    def http_response(self, status: int) -> None:
        self._responses.of(str(status)).inc()

    # -- values read at scrape time ---------------------------------------------------------------

    def watch(
        self,
        name: str,
        documentation: str,
        read: Callable[[], Mapping[tuple[str, ...], float]],
        labels: Sequence[str] = (),
        kind: Literal["gauge", "counter"] = "gauge",
    ) -> None:
        """Show ``callscribe_<name>`` as `read` gives it at each scrape, on the scraper's thread.

        `read` maps a tuple of label values (``()`` without labels) to the value, and must not
        block. At most `MAX_SERIES` are shown. One that raises is counted and left out of that
        scrape. Raises ValueError for a name that is taken or breaks Prometheus' conventions.
        """
        name = name.removeprefix(f"{PREFIX}_")
        if (kind == "counter") != name.endswith("_total"):
            raise ValueError(f"{name}: the names of counters, and of nothing else, end in _total")
        failed = self._scrape_failures.labels(name)
        self._registry.register(
            _Watch(f"{PREFIX}_{name}", documentation, read, labels, kind, failed.inc)
        )

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """`watch` one number."""
        self.watch(name, documentation, lambda: {(): read()})

    def each(
        self, name: str, documentation: str, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        """`watch` a number for each value of one label: counters, if the name ends in _total."""
        self.watch(
            name,
            documentation,
            lambda: {(value,): n for value, n in read().items()},
            [label],
            "counter" if name.endswith("_total") else "gauge",
        )

    def exposition(self) -> tuple[bytes, str]:
        """The text that Prometheus scrapes, and its content type."""
        families = list(self._registry.collect())
        families += self._scrape_failures.collect()
        for family in families:
            if family.type in ("counter", "histogram"):
                # The library's creation times: three times the series, asked for by nobody.
                family.samples = [s for s in family.samples if not s.name.endswith("_created")]
        return generate_latest(_Collected(families)), CONTENT_TYPE_LATEST


class _Collected:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _Watch:
    """One watched value as a collector."""

    def __init__(
        self,
        name: str,
        documentation: str,
        read: Callable[[], Mapping[tuple[str, ...], float]],
        labels: Sequence[str],
        kind: Literal["gauge", "counter"],
        failed: Callable[[], None],
    ) -> None:
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._read, self._failed = read, failed
        self._family = GaugeMetricFamily if kind == "gauge" else CounterMetricFamily
        self._failing = False  # so that a broken read is logged once, not at every scrape

    def describe(self) -> list[Metric]:
        return [self._family(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> list[Metric]:
        family = self._family(self._name, self._documentation, labels=self._labels)
        try:
            readings = list(self._read().items())
            for values, value in readings[:MAX_SERIES]:
                self._check(values)
                family.add_metric(values, float(value))
        except Exception as e:  # one broken value must not cost the scrape
            self._fail(type(e).__name__)
            return self.describe()
        if len(readings) > MAX_SERIES:
            self._fail(f"{len(readings)} series, at most {MAX_SERIES} are shown")
        else:
            self._failing = False
        return [family]

    def _check(self, values: tuple[str, ...]) -> None:
        if not isinstance(values, tuple) or len(values) != len(self._labels):
            raise ValueError("one value per label")

    def _fail(self, what: str) -> None:
        self._failed()
        if not self._failing:
            log.warning("metric %s cannot be read: %s", self._name, what)
        self._failing = True
