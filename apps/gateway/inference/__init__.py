"""One inference request from end to end."""
