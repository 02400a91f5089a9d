"""EfficientNet B0 to B7 as a feature extractor (Tan & Le, "EfficientNet", 2019)."""
