"""Log files stay bounded while their writers go on."""

from pathlib import Path

from citadel.embedded.logs import tail, turn_over


def test_turned_over_in_place(tmp_path: Path) -> None:
    log = tmp_path / "web-1.log"
    with log.open("a") as writer:
        for number in range(6):
            writer.write(f"{number}" * 2000 + "\n")
            writer.flush()
            turn_over(tmp_path, largest=1000, old_files=3)
        writer.write("after\n")
    assert log.read_text() == "after\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [log.name, *(f"{log.name}.{n}" for n in (1, 2, 3))]
    assert [(tmp_path / f"{log.name}.{n}").read_text()[0] for n in (1, 2, 3)] == ["5", "4", "3"]


def test_the_tail_is_what_came_since(tmp_path: Path) -> None:
    log = tmp_path / "postgres.log"
    log.write_text("old\n")
    since = log.stat().st_size
    with log.open("a") as writer:
        writer.write("".join(f"line {number}\n" for number in range(20)))
    assert tail(log, lines=2) == "line 18\nline 19"
    assert tail(log, lines=50, since=since).splitlines()[0] == "line 0"
    assert tail(tmp_path / "none.log") == ""
