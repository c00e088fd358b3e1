"""Counts of a server for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


class Metrics:
    """Counts for Prometheus, in a registry of one server's own."""

    def __init__(self, sessions: Callable[[], int], waiting: Callable[[], int], build: Mapping[str, str]) -> None:
        """`sessions`: live videos now. `waiting`: requests being read, waiting or computed now. `build`: what serves
        (version, bundle, provider)."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

        self.registry = of = CollectorRegistry()
        self.requests = Counter("fid_requests", "Requests answered.", ["method", "route", "status"], registry=of)
        self.seconds = Histogram("fid_request_seconds", "From request to answer.", ["route"], registry=of)
        self.frames = Counter("fid_live_frames", "Live frames handed over.", registry=of)
        self.dropped = Counter("fid_live_frames_dropped", "Live frames replaced by a newer one.", registry=of)
        age, buckets = (
            "From arrival of a frame to its hand-over.",
            (0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1),
        )
        self.age = Histogram("fid_live_frame_age_seconds", age, buckets=buckets, registry=of)
        Gauge("fid_live_sessions", "Live videos now.", registry=of).set_function(sessions)
        Gauge("fid_queue", "Requests being read, waiting or computed now.", registry=of).set_function(waiting)
        Info("fid_build", "What serves.", registry=of).info(dict(build))

    def text(self) -> bytes:
        """Return the exposition in Prometheus' text form."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


def merged(texts: Sequence[tuple[str, bytes]], label: str = "worker") -> bytes:
    """Return metrics of several processes in Prometheus' text form as one, each sample with a label that tells whose it
    is. `texts`: name and text of each."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import Metric
    from prometheus_client.parser import text_string_to_metric_families

    families: dict[str, Metric] = {}
    for name, text in texts:
        for family in text_string_to_metric_families(text.decode()):
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                known.add_sample(sample.name, {**sample.labels, label: name}, sample.value)

    class Known:
        def collect(self) -> list[Metric]:
            return list(families.values())

    registry = CollectorRegistry()
    registry.register(Known())  # type: ignore[arg-type] - it asks for no more of a collector
    return generate_latest(registry)
