"""The ground that everything stands on: errors, machine, checkpoints, locks, signals, records. Knows no stories and no network."""
