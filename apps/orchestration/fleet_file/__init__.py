"""The fleet as code: what a file says of servers, classes and aliases, and how the registry becomes that."""
