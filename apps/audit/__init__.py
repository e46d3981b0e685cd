"""What happened: records of requests."""
