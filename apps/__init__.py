"""Citadel's parts; each imports only what stands below it: audit, orchestration, gateway."""
