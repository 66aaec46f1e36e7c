"""Models: what all have in common, how one is built, and each kind in a package of its own."""
