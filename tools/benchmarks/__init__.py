"""Measurements, for development: never shipped."""
