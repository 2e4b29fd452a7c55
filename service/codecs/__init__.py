"""Bytes to arrays and back, one media type a file; none of them knows a model."""
