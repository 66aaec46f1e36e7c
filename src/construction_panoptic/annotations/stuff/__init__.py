"""Stuff regions: a labeller a module, behind the door in `labeller`; `labelling` runs any of them."""
