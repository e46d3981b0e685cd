"""Tokens that prove who asks for a while: Citadel's own, and those of trusted issuers (RFC 7519)."""
