"""Text in, token files out. Knows no model."""
