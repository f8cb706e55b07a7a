"""What the server counts, for Prometheus. No user, prompt or key is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families as families

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Numbers:
    """Numbers of one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Show `value` as it is whenever somebody asks."""
        Gauge(name, about, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class Metrics(Numbers):
    """The numbers of one server."""

    def __init__(self) -> None:
        super().__init__()
        of = self._registry
        self.requests = Counter(
            "prlhf_requests", "Requests answered, by path and status.", ["path", "status"], registry=of
        )
        self.hung_up = Counter("prlhf_hung_up", "Requests whose client left before the end.", registry=of)
        self.prompt_tokens = Counter("prlhf_prompt_tokens", "Tokens of prompts that were read.", registry=of)
        self.reused = Counter("prlhf_reused_tokens", "Tokens of prompts that had been read before.", registry=of)
        self.tokens = Counter("prlhf_tokens", "Tokens that were written.", registry=of)
        self.choices = Counter("prlhf_choices", "Choices of users that were kept.", registry=of)
        self.first = Histogram("prlhf_first_token_seconds", "Time to the first text.", buckets=SECONDS, registry=of)
        self.whole = Histogram("prlhf_response_seconds", "Time to the end of a request.", buckets=SECONDS, registry=of)

    def written(self) -> float:
        """How many tokens were written."""
        return self._registry.get_sample_value("prlhf_tokens_total") or 0.0


def together(texts: Mapping[str, bytes]) -> bytes:
    """The numbers of several processes in one text; the label `replica` has their names."""
    found: dict[str, Metric] = {}
    for name, text in texts.items():
        for family in families(text.decode()):
            one = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                one.add_sample(sample.name, sample.labels | {"replica": name}, sample.value)

    class All:
        def collect(self) -> Iterator[Any]:
            yield from found.values()

    return generate_latest(All())


def tokens_told(text: bytes) -> int:
    """How many tokens were written, by a text of numbers."""
    samples = [sample for family in families(text.decode()) for sample in family.samples]
    return int(sum(sample.value for sample in samples if sample.name == "prlhf_tokens_total"))
