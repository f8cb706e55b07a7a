"""What the server counts, for Prometheus. No user, prompt or key is in it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        of = self._registry
        self.requests = Counter(
            "prlhf_requests", "Requests answered, by path and status.", ["path", "status"], registry=of
        )
        self.hung_up = Counter("prlhf_hung_up", "Requests whose client left before the end.", registry=of)
        self.prompt_tokens = Counter("prlhf_prompt_tokens", "Tokens of prompts that were read.", registry=of)
        self.tokens = Counter("prlhf_tokens", "Tokens that were written.", registry=of)
        self.choices = Counter("prlhf_choices", "Choices of users that were kept.", registry=of)
        self.first = Histogram("prlhf_first_token_seconds", "Time to the first text.", buckets=SECONDS, registry=of)
        self.whole = Histogram("prlhf_response_seconds", "Time to the end of a request.", buckets=SECONDS, registry=of)

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Show `value` as it is whenever somebody asks."""
        Gauge(name, about, registry=self._registry).set_function(value)

    def written(self) -> float:
        """How many tokens were written."""
        return self._registry.get_sample_value("prlhf_tokens_total") or 0.0

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
