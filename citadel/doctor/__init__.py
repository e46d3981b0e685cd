"""`bin/manage doctor`: looks at everything that Citadel stands on, says what is wrong and how to mend it."""
