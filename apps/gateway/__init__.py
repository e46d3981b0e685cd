"""One request: who asks, within which limits, from which server."""
