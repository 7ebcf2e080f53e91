"""Models that are installed with the package."""
