"""Client certificates (mutual TLS), as a trusted proxy reports them."""
