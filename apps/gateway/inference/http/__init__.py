"""What passes between Citadel and a server: connections, answers, failures and their words."""
