"""Export formats, one module each, behind `reader`."""
