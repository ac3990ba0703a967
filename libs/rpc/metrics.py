"""Figures of a process, and the loopback port that Prometheus reads them from."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from libs.rpc.call import Method

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class CallMetrics:
    """Counts calls by method and code, and their time by method; one per registry."""

    _of: dict[int, CallMetrics] = {}  # noqa: RUF012 -- Prometheus refuses the same name twice in a registry

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter("kubegems_rpc_calls", "Calls that ended.", ["method", "code", "transport"], registry=registry)
        self.seconds = Histogram("kubegems_rpc_seconds", "Time of unary calls.", ["method"], buckets=_BUCKETS, registry=registry)
        self.open = Gauge("kubegems_rpc_open", "Calls under way.", ["method"], registry=registry)

    @classmethod
    def of(cls, registry: CollectorRegistry) -> CallMetrics:
        """The metrics of a registry, made once."""
        found = cls._of.get(id(registry))
        if found is None:
            found = cls._of[id(registry)] = cls(registry)
        return found

    def method(self, method: Method) -> MethodMetrics:
        """The figures of one method."""
        return MethodMetrics(self, method.path)


class MethodMetrics:
    """The figures of one method, with their labels looked up once."""

    def __init__(self, metrics: CallMetrics, path: str) -> None:
        self._calls, self._path = metrics.calls, path
        self._seconds = metrics.seconds.labels(path)
        self.open = metrics.open.labels(path)
        self._by_outcome: dict[tuple[str, str], Counter] = {}

    def ended(self, code: str, transport: str, seconds: float | None) -> None:
        """Counts one call; streams give no time."""
        counter = self._by_outcome.get((code, transport))
        if counter is None:
            counter = self._by_outcome[code, transport] = self._calls.labels(self._path, code, transport)
        counter.inc()
        if seconds is not None:
            self._seconds.observe(seconds)


def serve(address: str, port: int) -> Callable[[], None]:
    """Serves `/metrics` of the process on loopback, from a thread of its own so that a stuck loop still shows; returns how to stop it."""
    server, thread = start_http_server(port, address)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(timeout=2.0)

    return stop
