"""Owns the server: a model behind HTTP, and a page to talk to it."""
