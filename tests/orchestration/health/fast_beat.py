"""`celery -A tests.orchestration.health.fast_beat beat`: the real beat of the real app, ten times as fast."""

from citadel.celery import app

EVERY = 0.1
app.conf.beat_schedule = {"fleet": {"task": "fleet.tick", "schedule": EVERY, "args": (EVERY,)}}
