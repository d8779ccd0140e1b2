"""Speed beside that of others, measured with the product's own code."""
