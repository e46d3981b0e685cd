"""The fault matrix: each file breaks one thing for real and looks at what comes of it."""
