"""Load out of a page in Prometheus's text format, by the names that inference servers give it. Pure."""

import math
from collections.abc import Iterator

from apps.orchestration.dialects.dialect import Answers
from apps.orchestration.health.conditions import Load

IN_FLIGHT = frozenset({"vllm:num_requests_running", "llamacpp:requests_processing", "sglang:num_running_reqs"})
QUEUE = frozenset({"vllm:num_requests_waiting", "llamacpp:requests_deferred", "sglang:num_queue_reqs"})
MOST = 1_000_000


def read_load(answers: Answers) -> Load:
    """What all pages among `answers` that are text tell, series of one name summed up."""
    samples = [sample for page in answers.values() if isinstance(page, str) for sample in _samples(page)]
    return Load(in_flight=_sum(samples, IN_FLIGHT), queue=_sum(samples, QUEUE))


def _sum(samples: list[tuple[str, float]], names: frozenset[str]) -> int | None:
    found = [value for name, value in samples if name in names]
    return round(min(MOST, sum(found))) if found else None  # the sum may be infinite


def _samples(page: str) -> Iterator[tuple[str, float]]:
    """Name and value of each line that has both; labels may hold spaces and braces, a timestamp may follow."""
    for line in page.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name not in IN_FLIGHT and name not in QUEUE:
            continue
        rest = line.rpartition("}")[2] if "{" in line else line[len(name) :]
        try:
            value = float(rest.split()[0])
        except (IndexError, ValueError):
            continue
        if math.isfinite(value) and value >= 0:
            yield name, value
