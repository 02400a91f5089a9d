"""Recipe, optimizer, training step, run, validation and monitoring."""
