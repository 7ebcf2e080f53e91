"""From nothing to a model that is measured, in one command that may be interrupted: `python -m ldm.recipe --help`."""
