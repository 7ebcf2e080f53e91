"""Train and evaluate the built-in model in one command that can be resumed: `python -m ldm.recipe --help`."""
