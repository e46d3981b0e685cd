"""How much a caller may send."""
