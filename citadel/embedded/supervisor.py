"""A supervisor of child processes: starts them, waits until they answer, starts them anew when they die, ends them.

It knows nothing of what the children are; `Child` tells it all it needs. Everything happens in one thread, the one
that starts the children, since the kernel takes that thread's end for the parent's death.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from citadel.embedded.home import Home, StartError
from citadel.embedded.logs import tail, turn_over
from citadel.embedded.patience import until
from citadel.embedded.processes import Register, end

TETHER = Path(__file__).with_name("tether.py")
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 30.0
LOOK_SECONDS = 1.0
LEFTOVER_PATIENCE_SECONDS = 3.0


class User(NamedTuple):
    """A user of the machine, as the kernel knows one."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Child:
    """What the supervisor must know of one process; time limits in seconds."""

    name: str
    command: Callable[[], Sequence[str]]
    """Asked before each start: sets the place in order and gives program and arguments. May raise StartError."""
    ready: Callable[[], Awaitable[str | None]]
    """Asked again and again after a start: None once it answers, until then why not."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What it gets beside the supervisor's own."""
    files: tuple[int, ...] = ()
    """Open file descriptors that it inherits."""
    user: User | None = None
    """Who it runs as; None is who runs the supervisor."""
    socket: Callable[[], Path] | None = None
    """The file through which it is reached: when that is gone, the process is started anew."""
    start_timeout: float = 30.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout: float = 10.0
    patient: bool = False
    """It gets its stop_timeout even when the operator is in a hurry: its data want an orderly end."""
    tier: int = 0
    """What needs others is in a higher tier than they: it ends before them. One tier ends together."""


@dataclass
class _Running:
    child: Child
    process: Process
    started: float
    log_size: int
    """Bytes in its log before this start."""
    keeper: asyncio.Task[None] | None = None


class Supervisor:
    """The children of one home. `say` tells the person at the terminal one line."""

    def __init__(self, home: Home, say: Callable[[str], None]) -> None:
        self._home = home
        self._say = say
        self._register = Register(home)
        self._running: dict[str, _Running] = {}
        self._hurry = asyncio.Event()
        self.environment: dict[str, str] = {}
        """What every child started from now on gets, beside what the supervisor itself has."""

    def take_over(self) -> None:
        """Begin: end what an earlier supervisor of this home left behind, and write down our own process id."""
        leftovers = self._register.leftovers()
        if leftovers:
            self._say(f"Ending what an earlier start left behind: {', '.join(leftovers)}")
        end(leftovers.values(), LEFTOVER_PATIENCE_SECONDS)
        self._register.clear()
        self._register.enter("supervisor", os.getpid())

    def give_back(self) -> None:
        """The end: nothing of ours runs any more."""
        self._register.clear()

    async def start(self, child: Child) -> None:
        """Start CHILD, wait until it answers and keep it alive from then on.

        StartError with the last lines of its log when it ends before that or takes longer than its start_timeout.
        """
        running = self._running[child.name] = await self._spawn(child)
        trouble = await self._until_ready(running)
        if trouble:
            raise StartError(f"{child.name} did not start: {trouble}")
        running.keeper = asyncio.create_task(self._keep(running), name=f"keep {child.name}")

    async def run(self, name: str, command: Sequence[str], *, user: User | None = None, text: str = "") -> None:
        """Run a program to its end, with TEXT as its input and its output in `logs/NAME.log`.

        StartError with the last lines of that output when it fails. A cancelled run ends the program.
        """
        log, since = self._home.log(name), self._log_size(name)
        process = await self._launch(name, command, {}, (), user, signal.SIGTERM, asyncio.subprocess.PIPE)
        try:
            await process.communicate(text.encode())
        except asyncio.CancelledError:
            _signal_group(process, signal.SIGKILL)
            await process.wait()
            raise
        if process.returncode:
            raise StartError(f"{name} failed ({_ending(process)}):\n{tail(log, since=since)}\nThe whole story: {log}")

    async def stop(self) -> None:
        """End all children, tier by tier from the highest, each with its own signal and patience."""
        while self._running:
            highest = max(running.child.tier for running in self._running.values())
            tier = [running for running in self._running.values() if running.child.tier == highest]
            await asyncio.gather(*(self._end(running) for running in tier))

    def hurry(self) -> None:
        """End the patience: who is asked to stop, now or later, is killed at once, but for those marked `patient`."""
        self._hurry.set()

    async def look_after_logs(self) -> None:
        """Keep the log files bounded; runs until it is cancelled."""
        complaint = ""
        while True:
            try:
                turn_over(self._home.logs)
            except OSError as error:  # a full disk, say: the rest must go on, and it may pass
                if str(error) != complaint:
                    complaint = str(error)
                    self._say(f"Log files can't be turned over: {complaint}")
            await asyncio.sleep(LOOK_SECONDS)

    async def _spawn(self, child: Child) -> _Running:
        command, log_size = child.command(), self._log_size(child.name)
        process = await self._launch(
            child.name, command, child.environment, child.files, child.user, child.stop_signal, DEVNULL
        )
        self._register.enter(child.name, process.pid)
        return _Running(child, process, asyncio.get_running_loop().time(), log_size)

    async def _launch(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        files: tuple[int, ...],
        user: User | None,
        at_our_death: signal.Signals,
        stdin: int,
    ) -> Process:
        tether = [sys.executable, "-I", "-S", str(TETHER), *(("--user", f"{user.uid}:{user.gid}") if user else ())]
        log = os.open(self._home.log(name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            return await asyncio.create_subprocess_exec(
                *tether,
                str(os.getpid()),
                str(int(at_our_death)),
                *command,
                stdin=stdin,
                stdout=log,
                stderr=STDOUT,
                env={**os.environ, **self.environment, **environment},
                pass_fds=files,
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _log_size(self, name: str) -> int:
        log = self._home.log(name)
        return log.stat().st_size if log.exists() else 0

    async def _until_ready(self, running: _Running) -> str | None:
        """None once the child answers, else why it does not: it has ended, or its start_timeout has passed."""
        child, log = running.child, self._home.log(running.child.name)

        async def answers_or_ended() -> str | None:
            return None if running.process.returncode is not None else await child.ready()

        trouble = await until(answers_or_ended, child.start_timeout)
        if running.process.returncode is not None:
            trouble = _ending(running.process)
        elif trouble:
            trouble = f"no answer within {child.start_timeout:g} s ({trouble})"
        return trouble and f"{trouble}\n{tail(log, since=running.log_size)}\nThe whole story: {log}"

    async def _keep(self, running: _Running) -> None:
        """Start the child anew whenever it ends; pauses grow while it does not stay alive by itself."""
        child, pause, has_answered = running.child, FIRST_PAUSE_SECONDS, True
        while True:
            reason = await self._until_gone(running)
            was_asked = has_answered and running.process.returncode == 0
            if was_asked or asyncio.get_running_loop().time() - running.started > STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self._say(f"{child.name} {reason}; it starts again in {pause:g} s (see {self._home.log(child.name)})")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            try:
                self._register.leave(child.name)
                again = await self._spawn(child)
            except (StartError, OSError) as error:
                self._say(f"{child.name} can't be started: {error}")
                continue
            running.process, running.started, running.log_size = again.process, again.started, again.log_size
            trouble = await self._until_ready(running)
            has_answered = trouble is None
            if has_answered:
                self._say(f"{child.name} answers again")
            elif running.process.returncode is None:
                await self._kill(running.process)

    async def _until_gone(self, running: _Running) -> str:
        """Wait for the end of the process, or of the socket through which it is reached; gives what happened."""
        child, process = running.child, running.process
        while process.returncode is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), LOOK_SECONDS)
            if child.socket and process.returncode is None and not child.socket().exists():
                await self._ask(running)
                return f"lost its socket {child.socket()}"
        _signal_group(process, signal.SIGKILL)
        return _ending(process)

    async def _end(self, running: _Running) -> None:
        if running.keeper:
            running.keeper.cancel()
            with suppress(asyncio.CancelledError):
                await running.keeper
        await self._ask(running)
        self._running.pop(running.child.name, None)
        self._register.leave(running.child.name)

    async def _ask(self, running: _Running) -> None:
        """Ask the process to end, wait as long as it may take, then kill it and what else is in its group."""
        child, process = running.child, running.process
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(child.stop_signal)
            ended, hurry = asyncio.create_task(process.wait()), asyncio.create_task(self._hurry.wait())
            signs = (ended,) if child.patient else (ended, hurry)
            done, _ = await asyncio.wait(signs, timeout=child.stop_timeout, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            ended.cancel()
            if ended not in done:
                self._say(f"{child.name} has not ended by itself and is killed")
        await self._kill(process)

    async def _kill(self, process: Process) -> None:
        _signal_group(process, signal.SIGKILL)
        await process.wait()


def _signal_group(process: Process, number: signal.Signals) -> None:
    """Each child leads a process group, of which its own children may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _ending(process: Process) -> str:
    code = process.returncode or 0
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
