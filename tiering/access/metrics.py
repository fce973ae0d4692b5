"""What the client tells Prometheus: hits, times, breakers, the journal; in its own registry unless one is given."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The client's metrics, all named `tiering_access_…`.

    Args:
        registry: where they are registered; two clients of one process need two, or share these Metrics.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.reads = Counter(
            "tiering_access_reads", "Reads by kind of key and by what answered.", ["kind", "outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "tiering_access_seconds", "Time of calls that asked a database, by path.", ["path"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.hit_seconds = Histogram(
            "tiering_access_hit_seconds", "Time of one cache hit in 64.", buckets=_SECONDS, registry=self.registry
        )
        self.breaker = Gauge(
            "tiering_access_breaker", "0 closed, 1 on trial, 2 open.", ["store"], registry=self.registry
        )
        self.writes = Counter(
            "tiering_access_rows_written", "Rows by dataset and mode.", ["dataset", "mode"], registry=self.registry
        )
        self.bypassed = Counter(
            "tiering_access_bypassed", "Writes that told the database instead of the cache.", registry=self.registry
        )
        self.journal_rows = Gauge(
            "tiering_access_journal_rows", "Acknowledged rows not yet in their database.", registry=self.registry
        )
        self.journal_seconds = Gauge(
            "tiering_access_journal_seconds", "Age of the oldest of them.", registry=self.registry
        )
        self.rejected = Counter(
            "tiering_access_rows_rejected", "Rows that their database refuses; they are kept in the journal.",
            registry=self.registry,
        )  # fmt: skip
        self.evicted = Gauge("tiering_access_evicted_keys", "Keys that Redis evicted.", registry=self.registry)
