"""The fleet: servers, their models, their health, the way to them."""
