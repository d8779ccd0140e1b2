"""The base layer: errors, machine, checkpoints, locks. It knows nothing about stories or models."""
