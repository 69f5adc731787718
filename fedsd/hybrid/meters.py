"""What the IES counts, as Prometheus reads it; nothing in it tells prompts or devices apart."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Meters:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # CPU seconds and memory, on Linux
        self.requests = self._counter("requests", "Answers by status", "status")
        self.asks = self._counter("asks", "Admitted asks: hit, joined or miss", "cache")
        self.runs = self._counter("runs", "Denoising runs by outcome", "outcome")
        self.swaps = self._counter("adapter_swaps", "Neutral adapters of new rounds by outcome", "outcome")
        self.steps = Counter("fedsd_ies_steps", "Denoising steps of all pictures", registry=self.registry)
        self.queue = self._histogram("queue_seconds", "Time that runs waited", SECONDS)
        self.compute = self._histogram("compute_seconds", "Time that runs took", SECONDS)
        self.batch = self._histogram("batch", "Pictures in a run", (1, 2, 4, 8, 16, 32))
        self.under_way = Gauge("fedsd_ies_under_way", "Runs waiting or computing", registry=self.registry)
        self.cached = Gauge("fedsd_ies_cache_bytes", "Bytes of kept latents", registry=self.registry)
        self.adapter_round = Gauge("fedsd_ies_adapter_round", "Round of the neutral adapter", registry=self.registry)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, label: str) -> Counter:
        return Counter(f"fedsd_ies_{name}", what, [label], registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"fedsd_ies_{name}", what, buckets=buckets, registry=self.registry)
