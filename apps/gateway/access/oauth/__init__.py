"""OAuth 2.0: an API key is a client, its public id the client's id and the key itself the client's secret."""
