"""Run directories: saving, resuming, stopping."""
