"""The test server itself, tested over real sockets."""
