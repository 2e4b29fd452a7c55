"""Measurements of the project; each is a command."""
