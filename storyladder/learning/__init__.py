"""The mathematics of one training step. Knows no files."""
