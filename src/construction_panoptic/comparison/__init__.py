"""Comparing runs: what differs in their parameters, and by how much, and how surely, in their quality."""

from construction_panoptic.comparison.command import compare_runs

__all__ = ["compare_runs"]
