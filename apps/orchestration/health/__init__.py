"""How a server is: what the traffic says of it."""
