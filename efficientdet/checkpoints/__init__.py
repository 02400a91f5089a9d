"""Find, download and load weights, those of other programs included."""
