"""Find, download and load weights, including those of other programs."""
