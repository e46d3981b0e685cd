"""What a healthy backend of each kind answers. Pure: a request and a configuration in, an answer out."""
