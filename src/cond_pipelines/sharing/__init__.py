"""Sharing a model: its card and its way to the Hub."""
