"""Webhooks: reports that come in and make Citadel act, events that go out to subscribers."""
