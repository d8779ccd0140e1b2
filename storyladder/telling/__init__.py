"""Choosing the next token, and telling a whole story with it."""
