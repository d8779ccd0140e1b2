"""One stage from start to end: where it starts, its loop, what it keeps on the disk."""
