"""Citadel: one portal in front of an organisation's own AI servers."""

__version__ = "0.1.0"
