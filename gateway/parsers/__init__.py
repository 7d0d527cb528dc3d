"""Tool calls in a model's text: one incremental parser, formats as data."""
