"""Average precision, the causes of errors, and the report."""
