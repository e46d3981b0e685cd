"""The benchmark of Citadel: an upstream, a load generator, and the proxies to compare with, measured in one go."""
