"""Detection and explanation of common training problems."""
