"""Describe a configuration, a run, a directory of weights or a single file."""
