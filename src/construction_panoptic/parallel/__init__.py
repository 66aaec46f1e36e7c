"""Processes and clusters: one executor, collectives, launching."""
