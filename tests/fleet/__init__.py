"""A real HTTP server that can be told to be any AI backend and to break in any way: see README.md in this folder."""
