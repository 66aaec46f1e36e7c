"""Training and validation images, without near-duplicates across the two."""
