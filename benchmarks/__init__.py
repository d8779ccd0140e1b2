"""Benchmarks of the real code against other implementations."""
