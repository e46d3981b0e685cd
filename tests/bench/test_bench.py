"""The whole run, small: real upstream, real relay, nginx where it is installed."""

import json
import subprocess
import sys

import psutil
import pytest

from bench.processes import ROOT
from bench.targets import Nginx

STRATEGIES = ("weighted_round_robin", "least_busy", "peak_ewma", "affinity")
SMALL = ("--rounds", "2", "--seconds", "0.3", "--warmup", "0.1")


def bench(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bench", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_json_has_every_round_of_every_row_and_leaves_no_process() -> None:
    before = {process.pid for process in psutil.process_iter()}
    done = bench(*SMALL, "--json", "--targets", "upstream,relay", "--only", "chat,streams,embeddings")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    rows = {(row["case"], row["target"]): row for row in report["rows"]}
    assert set(rows) == {(case, of) for case in ("chat", "streams", "embeddings") for of in ("upstream", "relay")}
    for row in rows.values():
        assert len(row["rounds"]) == 2
        assert row["rate"] > 0
        assert row["errors"] == 0
    assert rows["chat", "relay"]["cpu_us"] > 0
    assert rows["chat", "relay"]["rss_mb"] > 10
    ours = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid not in before and "bench.relay" in (process.info["cmdline"] or [])
    ]
    assert ours == []


@pytest.mark.skipif(Nginx.program() is None, reason="nginx is not installed")
def test_the_table_judges_the_relay_by_nginx() -> None:
    done = bench(*SMALL, "--targets", "upstream,nginx,relay", "--only", "chat")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chat: relay / nginx at a full core" in done.stdout


def test_an_unknown_case_is_told_with_the_known_ones() -> None:
    done = bench("--only", "chatt")
    assert done.returncode == 2
    assert "'chatt' is none of chat, " in done.stderr


@pytest.mark.long
def test_what_a_large_fleet_costs_is_in_the_report() -> None:
    done = bench(*SMALL, "--json", "--targets", "relay,citadel", "--only", "routing,heartbeats")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    decisions = {(row["holders"], row["strategy"]): row for row in report["fleet"]["decisions"]}
    assert decisions.keys() == {(holders, strategy) for holders in (10, 200) for strategy in STRATEGIES}
    for strategy in STRATEGIES:
        assert 0 < decisions[10, strategy]["p50"] < decisions[10, strategy]["p99"]
        assert decisions[10, strategy]["p50"] < decisions[200, strategy]["p50"]
    beats = report["fleet"]["heartbeats"]
    assert beats["refused"] == 0
    assert 0 <= beats["idle_share"] < 100
    assert 0 < beats["share"] < 100
    assert 0 < beats["relay_share"] < 100
    judged = [verdict for verdict in report["verdicts"] if verdict["unit"] == "us"]
    assert [verdict["name"] for verdict in judged] == [f"a routing decision by {one}: p99" for one in STRATEGIES]
    assert [verdict["value"] for verdict in judged] == [decisions[10, one]["p99"] for one in STRATEGIES]
    *_, of_a_core, beside_the_relay = report["verdicts"]
    assert of_a_core["value"] == beats["share"]
    assert beside_the_relay["value"] == beats["share"] / beats["relay_share"]
