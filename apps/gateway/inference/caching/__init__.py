"""Answers that need no server: kept ones, and those that an equal request brings in this moment."""
