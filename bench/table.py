"""The report of a run: one table and its verdicts, for people or as JSON."""

import math
from collections.abc import Sequence

import msgspec

from bench.citadel import Shipped
from bench.fleet import Fleet
from bench.heartbeats import Heartbeats
from bench.rounds import Row
from bench.routing import Decisions
from bench.verdicts import Verdict

HEADINGS = (
    "case", "target", "units/s", "p50 ms", "p99 ms", "max ms", "gap ms",
    "CPU us", "others us", "core", "starved", "RSS MB", "errors",
)  # fmt: skip
EXPLANATION = """\
units are requests, for streams chunks; times are of whole answers, for streams of the first byte; gap: the longest
pause inside an answer; CPU: of the server's processes for a unit, others: of its databases and background workers;
core: the share of one core that the server used; starved: the share of the time in which it could have worked but other
programs had its core, so the figures are worth less. Figures are medians over the rounds. Of chat-signed and
chat-signed-message every other request brings its key, and is in all figures but the times."""


class Report(msgspec.Struct, frozen=True):
    """All that a run has found. ``notes`` say how it was measured."""

    notes: list[str]
    rows: list[Row]
    verdicts: list[Verdict]
    shipped: Shipped | None = None
    fleet: Fleet = Fleet()


def as_text(report: Report) -> str:
    """Render the report as text."""
    lines = [HEADINGS, *(_cells(row) for row in report.rows)]
    parts = [*report.notes, "", *_aligned(lines, left=2), "", EXPLANATION]
    parts += [f"  {row.case.name}, {row.target}: {error}" for row in report.rows if (error := _first_error(row))]
    if told := [*map(_decision_cells, report.fleet.decisions), *_heartbeat_cells(report.fleet.heartbeats)]:
        parts += ["", *_aligned(told, left=1)]
    if report.verdicts:
        parts += ["", *_aligned([_verdict_cells(verdict) for verdict in report.verdicts], left=1)]
    if report.shipped:
        parts += ["", _shipping(report.shipped)]
    return "\n".join(parts)


def as_json(report: Report) -> str:
    """Render the report as JSON, with every round of every row."""
    document = {
        "notes": report.notes,
        "rows": [_row_document(row) for row in report.rows],
        "verdicts": [{**msgspec.to_builtins(verdict), "met": verdict.is_met} for verdict in report.verdicts],
        "shipped": report.shipped._asdict() if report.shipped else None,
        "fleet": msgspec.to_builtins(report.fleet),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _decision_cells(decisions: Decisions) -> tuple[str, ...]:
    what = f"a routing decision by {decisions.strategy}, {decisions.holders} servers hold the model"
    return (what, f"p50 {decisions.p50:.0f} us", f"p99 {decisions.p99:.0f} us")


def _heartbeat_cells(beats: Heartbeats | None) -> list[tuple[str, ...]]:
    if beats is None:
        return []
    idle = f"{beats.idle_share:.2f} % of a core without"
    busy = f"{beats.idle_share + beats.share:.2f} % of a core"
    return [(f"a worker with {beats.rate:.1f} heartbeats a second", busy, idle)]


def _shipping(shipped: Shipped) -> str:
    missing = shipped.sent - shipped.in_database
    return (
        f"audit records: {shipped.sent:,} requests sent, {shipped.pending:,} records unshipped when the load ended; "
        f"{shipped.seconds:.1f} s later {shipped.in_database:,} in PostgreSQL"
        + (f": {abs(missing):,} {'MISSING' if missing > 0 else 'TOO MANY'}" if missing else ", none is missing")
    )


def _row_document(row: Row) -> dict[str, object]:
    return {
        "case": row.case.name,
        "target": row.target,
        "unit": row.case.unit,
        "connections": row.case.connections,
        "rate": row.rate,
        "p50_ms": row.median(lambda sample: sample.result.p50),
        "p90_ms": row.median(lambda sample: sample.result.p90),
        "p99_ms": row.median(lambda sample: sample.result.p99),
        "max_ms": row.median(lambda sample: sample.result.max),
        "gap_max_ms": row.median(lambda sample: sample.result.gap_max),
        "cpu_us": row.cpu_us,
        "others_cpu_us": row.other_cpu_us,
        "core": row.busy,
        "starved": row.starved,
        "rss_mb": row.rss_mb,
        "errors": row.failed,
        "rounds": [msgspec.to_builtins(sample, str_keys=True) for sample in row.samples],
    }


def _cells(row: Row) -> tuple[str, ...]:
    is_stream = row.case.unit == "chunks"
    return (
        row.case.name,
        row.target,
        f"{row.rate:,.0f}",
        _number(row.median(lambda sample: sample.result.p50)),
        _number(row.median(lambda sample: sample.result.p99)),
        _number(row.median(lambda sample: sample.result.max)),
        _number(row.median(lambda sample: sample.result.gap_max)) if is_stream else "",
        f"{row.cpu_us:,.1f}",
        f"{row.other_cpu_us:,.1f}" if row.other_cpu_us else "",
        f"{row.busy:.0%}",
        f"{row.starved:.0%}",
        f"{row.rss_mb:,.0f}",
        f"{row.failed:,}",
    )


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _verdict_cells(verdict: Verdict) -> tuple[str, ...]:
    return (
        verdict.name,
        f"{verdict.value:.2f} {verdict.unit}".rstrip(),
        f"({verdict.low:.2f} to {verdict.high:.2f})",
        f"{verdict.relation} {verdict.target:g} {verdict.unit}".rstrip(),
        "met" if verdict.is_met else "MISSED",
    )


def _first_error(row: Row) -> str:
    return next((sample.result.first_error for sample in row.samples if sample.result.first_error), "")


def _aligned(lines: Sequence[tuple[str, ...]], left: int) -> list[str]:
    """Put cells under each other, the first ``left`` columns to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
