"""How well a model predicts text: loss, perplexity, bits per byte on fixed windows."""
