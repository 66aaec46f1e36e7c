"""Where stuff regions come from, one module each, behind `labeller`."""
