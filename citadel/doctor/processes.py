"""The processes of a Citadel that bin/run started: do those live that say so, and does the web answer."""

from collections.abc import Iterator

import httpx

from citadel import presence
from citadel.doctor.finding import Finding, broken, doubtful, well
from citadel.doctor.patient import PATIENCE, Asleep, Patient


def alive(patient: Patient) -> Iterator[Finding]:
    """Each that bin/run has recorded. Without any, nothing was started here: other machines may run them."""
    names = sorted(presence.recorded(patient.home))
    if sentence := presence.stopping(patient.home):
        yield doubtful(f"Citadel does not serve any more: {sentence}", "bin/run starts it again once it has ended")
        return
    if patient.asleep:
        yield _not_running(patient)
        return
    if not names:
        yield well(f"none was started in {patient.home} by bin/run")
        return
    dead = [name for name in names if not presence.lives(patient.home, name)]
    for name in dead:
        yield broken(
            f"{name} should run and does not",
            f"the end of {patient.home / 'logs' / name}.log says why; bin/run starts what is missing"
            + ("" if name == "supervisor" else ", a running one within seconds by itself"),
        )
    if len(dead) < len(names):
        yield well(f"{', '.join(name for name in names if name not in dead)} run")


def _not_running(patient: Patient) -> Finding:
    """A running Citadel tells its addresses, so that there is none, or it has not come so far."""
    if presence.runs(patient.home):
        return doubtful("Citadel is starting", "ask again in a moment")
    given = {"DATABASE_URL": patient.config.database_url, "REDIS_URL": patient.config.redis_url}
    lacking = [name for name, url in given.items() if not url]
    elsewhere = f", or set {lacking[0]} too where it runs without" if len(lacking) == 1 else ""
    return broken(f"Citadel is not running in {patient.home}", f"start it with bin/run{elsewhere}")


def web(patient: Patient) -> Iterator[Finding]:
    """Whether this machine's own web workers answer, where some were started here."""
    if patient.asleep or presence.stopping(patient.home):
        raise Asleep
    if not any(name.startswith("web-") for name in presence.recorded(patient.home)):
        yield well("no web worker was started here by bin/run")
        return
    url = patient.config.server.url
    try:
        status = httpx.get(f"{url}/health/live", timeout=PATIENCE, trust_env=False).status_code
    except httpx.HTTPError as error:
        yield broken(f"nothing answers at {url}: {error}", f"see {patient.home / 'logs'}/web-1.log")
        return
    if status == 200:
        yield well(f"{url} answers")
    else:
        yield broken(f"{url}/health/live answers {status}", "does another program listen there?")
