"""The ways of proving who asks; each gives a Caller."""
