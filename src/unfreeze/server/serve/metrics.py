"""Prometheus metrics of the prediction API; they contain nothing about the images."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from unfreeze.server.serve.limits import KINDS

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
_PHOTOS = (1, 2, 4, 8, 16, 32, 64)
PATHS = ("/", "/predict", "/explain", "/healthz", "/metrics", "/docs", "/openapi.json")


class Metrics:
    """Metrics of one server, in a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        to = self.registry
        self.requests = Counter("unfreeze_requests", "Requests answered.", ("path", "status"), registry=to)
        self.errors = Counter("unfreeze_errors", "Requests and photos refused, by reason.", ("kind",), registry=to)
        self.photos = Counter("unfreeze_photos", "Photos predicted.", registry=to)
        self.batches = Histogram("unfreeze_batch_photos", "Photos in a batch.", buckets=_PHOTOS, registry=to)
        self.inference = Histogram("unfreeze_inference_seconds", "Time of a batch.", buckets=_SECONDS, registry=to)
        self.latency = Histogram(
            "unfreeze_request_seconds", "From a request's head to its answer.", ("path",), buckets=_SECONDS, registry=to
        )
        self.decoders = Counter(
            "unfreeze_decoders_ended", "Decoder processes replaced, by reason.", ("reason",), registry=to
        )
        self.restarts = Counter("unfreeze_worker_restarts", "Restarts of the prediction thread.", registry=to)
        self.waiting = Gauge("unfreeze_queue_photos", "Photos waiting or being predicted.", registry=to)
        self.held = Gauge("unfreeze_queue_bytes", "Bytes of requests and photos held.", registry=to)
        for kind in KINDS:
            self.errors.labels(kind)
        for reason in ("time", "memory", "crash", "left"):
            self.decoders.labels(reason)
        ProcessCollector(registry=self.registry)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a response; unknown paths share one label."""
        known = path if path in PATHS else "/static" if path.startswith("/static/") else "other"
        self.requests.labels(known, str(status)).inc()
        self.latency.labels(known).observe(seconds)

    def text(self) -> bytes:
        """Metrics in the Prometheus text format."""
        return generate_latest(self.registry)
