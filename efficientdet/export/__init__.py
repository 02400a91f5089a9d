"""Export a trained network to other engines, and prove the exported file."""
