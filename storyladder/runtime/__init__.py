"""The ground that everything stands on: errors, machine, checkpoints, locks. Knows no stories and no network."""
