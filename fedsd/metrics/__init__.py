"""Scores of generated pictures and of adapters."""
