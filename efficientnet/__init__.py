"""EfficientNet B0-B7 as a feature extractor (Tan & Le, "EfficientNet", 2019)."""
