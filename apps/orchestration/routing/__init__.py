"""Which servers a request may go to, in which order. Pure."""
