"""The measurements of a run: which case on which targets, and the rounds in which they take turns.

The machine's speed changes while it is measured. So the targets of a case follow each other closely, the whole is
repeated, and what is compared are pairs of the same round.
"""

import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from bench.load import Plan
from bench.measurement import Result, middle
from bench.processes import PYTHON, ROOT
from bench.targets import Target


@dataclass(frozen=True)
class Case:
    """One line of work: a workload, how much of it at once, and who takes part."""

    name: str
    workload: str
    connections: int
    targets: tuple[str, ...]
    unit: str = "requests"
    is_open: bool = False
    is_sliced: bool = False


ALL = ("upstream", "nginx", "relay", "citadel")
"""Who can do plain work."""
TARGETS = (*ALL, "unguarded")
CASES = (
    Case("chat", "chat", 16, ALL),
    Case("chat-busy", "chat", 64, ("citadel", "unguarded"), is_sliced=True),
    Case("chat-placed", "chat-placed", 64, ("citadel",), is_sliced=True),
    Case("chat-signed", "chat-signed", 1, ("citadel",)),
    Case("chat-signed-message", "chat-signed-message", 1, ("citadel",)),
    Case("chat-cacheable", "chat-cacheable", 16, ("citadel",)),
    Case("chat-cached", "chat-cached", 16, ("citadel",)),
    Case("streams", "streams", 200, ALL, "chunks"),
    Case("streams-paced", "streams-paced", 200, ALL, "chunks"),
    Case("embeddings", "embeddings", 16, ALL),
    Case("embeddings-cached", "embeddings-cached", 16, ("citadel",)),
    Case("chat-fixed-rate", "chat", 64, ("upstream", "relay", "citadel"), is_open=True),
)
SLICE, SLICE_WARMUP = 0.8, 0.2
"""Seconds of a case that is compared with another by a small difference, on a machine whose pace changes by the second:
one slice says anything from 0.6 to 1.4 of the other, so they take many, and turns at being first.
"""
SLICED = 10
"""How many times as long as another case such a case is measured."""
GROWTH = Case("memory", "chat", 16, ("citadel",))
GROWTH_WARMUP = 5.0


class Sample(msgspec.Struct, frozen=True):
    """One measurement of one target: the load generator's result, and what the target's processes took meanwhile."""

    result: Result
    server_cpu_seconds: float
    other_cpu_seconds: float
    starved_seconds: float
    rss_mb: float
    rss_before_mb: float
    requested_rate: float = 0.0


@dataclass
class Row:
    """All rounds of one case on one target; the figures are medians over the rounds."""

    case: Case
    target: str
    samples: list[Sample] = field(default_factory=list)

    def median(self, figure: Callable[[Sample], float]) -> float:
        """Return the median of a figure over the rounds."""
        return middle([figure(sample) for sample in self.samples])

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.median(lambda sample: sample.result.rate)

    @property
    def cpu_us(self) -> float:
        """Microseconds of processor time that the server took for a unit."""
        return self.median(lambda sample: _each(sample.server_cpu_seconds, sample.result.units))

    @property
    def other_cpu_us(self) -> float:
        """Microseconds of processor time that its helpers took for a unit."""
        return self.median(lambda sample: _each(sample.other_cpu_seconds, sample.result.units))

    @property
    def busy(self) -> float:
        """The share of one core that the server used."""
        return self.median(lambda sample: sample.server_cpu_seconds / sample.result.seconds)

    @property
    def starved(self) -> float:
        """The share of the time in which the server could have worked but others had its core."""
        return self.median(lambda sample: sample.starved_seconds / sample.result.seconds)

    @property
    def rss_mb(self) -> float:
        """The server's resident memory at the end of the last round."""
        return self.samples[-1].rss_mb

    @property
    def failed(self) -> int:
        """Requests of all rounds that were not answered, or answered wrongly."""
        return sum(sample.result.failed for sample in self.samples)


def _in_turn(cases: Sequence[Case], slices: int) -> Iterator[Case]:
    """Yield each case once, and after them those that are sliced, in turn and as often as they are to be measured."""
    yield from (case for case in cases if not case.is_sliced)
    sliced = [case for case in cases if case.is_sliced]
    for number in range(slices):
        yield from reversed(sliced) if number % 2 else sliced


def _each(seconds: float, units: int) -> float:
    return seconds * 1e6 / units if units else float("nan")


def measure(target: Target, plan: Plan) -> Sample:
    """Run the load generator in a process of its own, on the cores of this one, against one target."""
    server, others = target.server_pids(), target.other_pids()
    plan = msgspec.structs.replace(plan, watch=(*server, *others))
    command = [PYTHON, "-m", "bench.load", plan.url, plan.workload, "--watch", *map(str, plan.watch)]
    for option in ("connections", "seconds", "warmup", "count", "rate"):
        command += [f"--{option}", str(getattr(plan, option))]
    credentials = {"BENCH_API_KEY": target.key, "BENCH_SIGNING_SECRET": target.signing_secret}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **credentials}, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The load generator failed against {target.name}:\n{done.stderr.decode()}")
    result = msgspec.convert(json.loads(done.stdout), Result, strict=False)
    used = result.usage
    target.sent += result.requests + result.warmup_requests
    return Sample(
        result=result,
        server_cpu_seconds=sum(used[pid].cpu_seconds for pid in server if pid in used),
        other_cpu_seconds=sum(used[pid].cpu_seconds for pid in others if pid in used),
        starved_seconds=sum(used[pid].starved_seconds for pid in server if pid in used),
        rss_mb=sum(used[pid].rss_mb for pid in server if pid in used),
        rss_before_mb=sum(used[pid].rss_before_mb for pid in server if pid in used),
        requested_rate=plan.rate,
    )


@dataclass(frozen=True)
class Pace:
    """How long and how often."""

    rounds: int = 3
    seconds: float = 4.0
    warmup: float = 1.0

    @property
    def slices(self) -> int:
        """How many slices of a case are measured in a round."""
        return math.ceil(SLICED * self.seconds / SLICE)


class Run:
    """All cases on all targets, round after round. ``say`` is told of each measurement before it starts."""

    def __init__(self, targets: Mapping[str, Target], pace: Pace, say: Callable[[str], None]) -> None:
        self.targets = targets
        self.pace = pace
        self.say = say
        self.rows: dict[tuple[str, str], Row] = {}

    def run(self, cases: Sequence[Case]) -> None:
        """Measure the cases in interleaved rounds; those with a fixed rate come after the others, which set it."""
        for group in ([case for case in cases if not case.is_open], [case for case in cases if case.is_open]):
            for number in range(1, self.pace.rounds + 1):
                for case in _in_turn(group, self.pace.slices):
                    for name in case.targets:
                        if name in self.targets:
                            self.say(f"round {number} of {self.pace.rounds}: {case.name}, {name}")
                            self.sample(case, name)

    def sample(self, case: Case, name: str) -> None:
        """Measure one case on one target, once."""
        target = self.targets[name]
        plan = Plan(
            url=target.url,
            workload=case.workload,
            connections=case.connections,
            seconds=min(SLICE, self.pace.seconds) if case.is_sliced else self.pace.seconds,
            warmup=min(SLICE_WARMUP, self.pace.warmup) if case.is_sliced else self.pace.warmup,
            rate=self.quarter_rate() if case.is_open else 0.0,
        )
        row = self.rows.setdefault((case.name, name), Row(case, name))
        row.samples.append(measure(target, plan))

    def quarter_rate(self) -> float:
        """Return a quarter of what the slowest proxy can do (that is Citadel's, where it takes part)."""
        name = next(name for name in ("citadel", "relay", "nginx", "upstream") if name in self.targets)
        chat = CASES[0]
        if (chat.name, name) not in self.rows:
            self.sample(chat, name)
        return self.rows[chat.name, name].rate / 4

    def grow(self, count: int) -> None:
        """Send Citadel ``count`` plain chat requests after a warm-up, to see what memory does."""
        self.say(f"{GROWTH.name}: {count:,} requests")
        target = self.targets["citadel"]
        plan = Plan(url=target.url, workload=GROWTH.workload, warmup=GROWTH_WARMUP, count=count)
        row = self.rows.setdefault((GROWTH.name, "citadel"), Row(GROWTH, "citadel"))
        row.samples.append(measure(target, plan))
