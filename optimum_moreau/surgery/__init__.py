"""Applies a plan in place, and says which class holds the result."""
