"""Generation: loading a trained model, sampling the next token, telling a whole story."""
