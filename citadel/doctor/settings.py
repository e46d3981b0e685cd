"""Configuration: can it be used, and the secret that keys are hashed with."""

from collections.abc import Iterator

from citadel import config
from citadel.doctor.finding import Finding, broken, doubtful, well
from citadel.doctor.patient import Patient
from citadel.sections import ConfigError


def readable(patient: Patient) -> Iterator[Finding]:
    """Every layer is read as the start reads it."""
    for path in config.unread(patient.home):
        yield doubtful(f"nobody reads {path}", f"settings stand in {patient.home / config.YAML_FILES[0]}")
    try:
        tree, origins = config.read(patient.environ)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield broken(line, "correct it there; docs/settings.md has every setting")
        return
    yield well(f"{len(origins)} settings are not their defaults; bin/manage config show tells which")
    try:
        tree.secret  # noqa: B018 - it is the look that is wanted
    except ConfigError as error:
        if tree.security.secret_key is not None or not patient.asleep:  # else bin/run makes one
            yield broken("there is no secret to hash keys with", str(error))
    if tree.env == "development":
        yield doubtful("CITADEL_ENV is development: error pages show code to whoever sees them", "set it to production")
