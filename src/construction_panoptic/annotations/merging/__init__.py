"""Things laid over stuff: masks, segments, and the check of what comes out."""
