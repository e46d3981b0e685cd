"""What may be spent, what it costs and what has been spent, as people set and see it."""
