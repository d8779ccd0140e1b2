"""Training one stage: what it starts from, its loop, its checkpoints."""
