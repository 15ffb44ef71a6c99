"""Owns what is counted of requests, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Final

BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts of times by how long they are."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for limit, count in zip((*BUCKETS, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{limit}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """What was asked, how it ended, how long it took.

    Attributes
    ----------
    requests
        By path, one of the server's own, and status.
    prompt_tokens, made_tokens
        All that were read and made.
    seconds, first_token_seconds
        From a request to the end of its answer, and to the first token.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = 0
        self.made_tokens = 0
        self.seconds = Histogram()
        self.first_token_seconds = Histogram()

    def text(self, running: int, waiting: int, connections: int) -> str:
        """Return all of it, and how many texts are made and wait just now."""
        lines = ["# HELP rustgpt_requests_total Requests by path and status."]
        lines.append("# TYPE rustgpt_requests_total counter")
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'rustgpt_requests_total{{path="{path}",status="{status}"}} {count}')
        for name, kind, text, value in (
            ("prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens),
            ("generated_tokens_total", "counter", "Tokens that were made.", self.made_tokens),
            ("texts_running", "gauge", "Texts that are made now.", running),
            ("texts_waiting", "gauge", "Texts that wait for their turn.", waiting),
            ("connections", "gauge", "Connections that are open.", connections),
        ):
            lines += _head(name, kind, text)
            lines.append(f"rustgpt_{name} {value}")
        for name, text, histogram in (
            ("request_seconds", "From a request to its end.", self.seconds),
            ("first_token_seconds", "To the first token.", self.first_token_seconds),
        ):
            lines += [*_head(name, "histogram", text), *histogram.lines(f"rustgpt_{name}")]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP rustgpt_{name} {text}", f"# TYPE rustgpt_{name} {kind}"]
