"""Named configurations, installed with the package."""
