"""What benchmark.py measures, what it compares with, and its tables."""
