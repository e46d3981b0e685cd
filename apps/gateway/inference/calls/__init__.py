"""Calls to servers for one request: which is asked, for how long, what follows when it fails."""
