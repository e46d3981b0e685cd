"""Citadel on one machine, by one command: its own PostgreSQL, Redis and demo models, supervised as child processes."""
