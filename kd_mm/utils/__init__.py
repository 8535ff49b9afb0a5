"""Checks and small helpers that are no component of a model."""
