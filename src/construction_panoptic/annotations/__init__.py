"""From annotation files to panoptic training data."""
