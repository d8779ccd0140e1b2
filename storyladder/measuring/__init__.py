"""Measuring: loss on whole texts, forgetting, story scorecard, plots, report."""
