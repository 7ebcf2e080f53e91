"""Log files, trackers, rates and curves."""
