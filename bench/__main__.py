"""``bin/bench``: everything in one go, one table at the end."""

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from bench import heartbeats, processes, routing
from bench.citadel import Citadel, Shipped, Unguarded, shipped
from bench.fleet import Fleet
from bench.rounds import CASES, GROWTH, TARGETS, Pace, Run
from bench.table import Report, as_json, as_text
from bench.targets import Nginx, Relay, Target, Upstream
from bench.verdicts import of_fleet, verdicts

GROWTH_REQUESTS = 100_000
HEARTBEATS, ROUTING = "heartbeats", "routing"
HEARTBEAT_SECONDS = 10.0
"""At least: a hundredth of a core is little to measure."""


def main() -> int:
    """Measure what the command line asks for; 1 if any answer was wrong or any record was lost."""
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        home = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="citadel-bench-", ignore_cleanup_errors=True))
        )
        try:
            report = _measure(options, home, stack)
        except RuntimeError as error:
            _say(str(error))
            return 1
        except KeyboardInterrupt:
            _say("interrupted")
            return 130
    sys.stdout.write((as_json(report) if options.json else as_text(report)) + "\n")
    is_lost = bool(report.shipped and report.shipped.in_database != report.shipped.sent)
    is_refused = bool(report.fleet.heartbeats and report.fleet.heartbeats.refused)
    return int(is_lost or is_refused or any(row.failed for row in report.rows))


def _measure(options: argparse.Namespace, home: Path, stack: ExitStack) -> Report:
    cores = processes.cores()
    processes.pin(os.getpid(), cores.rest)
    targets = _start(options.targets, home, cores, stack)
    run = Run(targets, Pace(options.rounds, options.seconds, options.warmup), _say)
    run.run([case for case in CASES if not options.only or case.name in options.only])
    citadel = targets.get("citadel")
    left: Shipped | None = None
    if isinstance(citadel, Citadel):
        if GROWTH.name in options.only or not (options.only or options.quick):
            run.grow(options.growth_requests)
        _say("waiting for the audit records")
        citadel.sent += targets["unguarded"].sent if "unguarded" in targets else 0  # whose records it ships too
        left = shipped(citadel)
    fleet = _measure_fleet(options, citadel if isinstance(citadel, Citadel) else None, targets.get("relay"))
    judged = [*verdicts(run.rows), *of_fleet(fleet)]
    return Report(_notes(cores, run.pace), list(run.rows.values()), judged, left, fleet)


def _measure_fleet(options: argparse.Namespace, citadel: Citadel | None, relay: Target | None) -> Fleet:
    """Measure what the fleet costs beside its requests: last, since it stays registered."""
    decisions, beats = None, None
    if citadel and (not options.only or ROUTING in options.only):
        _say(f"{ROUTING}: {routing.SERVERS} servers, {routing.MODELS:,} models")
        decisions = routing.measure()
    if citadel and (HEARTBEATS in options.only or not (options.only or options.quick)):
        _say(f"{HEARTBEATS}: {heartbeats.SERVERS:,} servers")
        beats = heartbeats.measure(citadel, relay, max(HEARTBEAT_SECONDS, options.rounds * options.seconds))
    return Fleet(decisions or [], beats)


def _start(names: Sequence[str], home: Path, cores: processes.Cores, stack: ExitStack) -> dict[str, Target]:
    """Start the targets, to be stopped in reverse with the run. The upstream is always among them."""
    upstream = Upstream(home, cores)
    targets: list[Target] = [upstream]
    if "nginx" in names and Nginx.program():
        targets.append(Nginx(home, cores, upstream))
    if "relay" in names:
        targets.append(Relay(home, cores, upstream))
    if "citadel" in names:
        citadel = Citadel(home, cores, upstream)
        targets.append(citadel)
        if "unguarded" in names:
            targets.append(Unguarded(home, cores, citadel))
    for target in targets:
        _say(f"starting {target.name}")
        stack.callback(target.stop)
        target.start()
    return {target.name: target for target in targets if target.name in names}


def _notes(cores: processes.Cores, pace: Pace) -> list[str]:
    where = (
        f"the server under test on core {_listed(cores.server)}, all else on {_listed(cores.rest)}"
        if cores.are_apart
        else "server and load share their cores: rates are lower than they could be"
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; {where}",
        f"{pace.rounds} rounds of {pace.seconds:g} s after {pace.warmup:g} s of warm-up; load average after it {load}",
    ]


def _listed(cores: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(cores)))


def _options() -> argparse.Namespace:
    names = [*(case.name for case in CASES), GROWTH.name, ROUTING, HEARTBEATS]
    parser = argparse.ArgumentParser(
        prog="bin/bench", description="Measure Citadel beside its upstream, nginx and a bare relay."
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is repeated (3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long one measurement takes (4)")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before each measurement (1)")
    parser.add_argument("--only", type=_list_of(names), default=[], metavar="CASE,…", help="; ".join(names))
    parser.add_argument(
        "--targets", type=_list_of(TARGETS), default=list(TARGETS), metavar="TARGET,…", help="; ".join(TARGETS)
    )
    parser.add_argument("--growth-requests", type=int, default=GROWTH_REQUESTS, help="how many for memory (100000)")
    parser.add_argument("--quick", action="store_true", help="one round of 1.5 s, no memory case, no heartbeats")
    parser.add_argument("--json", action="store_true", help="print JSON, with every round")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.warmup = 1, 1.5, 0.5
    return options


def _list_of(names: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a reader of comma-separated words that knows which words there are."""

    def read(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in names:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(names)}")
        return words

    return read


def _say(line: str) -> None:
    """Tell a person how it goes; standard output stays for the report."""
    sys.stderr.write(line + "\n")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
