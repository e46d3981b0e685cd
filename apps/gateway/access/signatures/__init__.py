"""Requests that are signed, by a key's signing secret or its own private key: in a simple form, or by RFC 9421."""
