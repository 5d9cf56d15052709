"""Runs: from settings to a folder with a trained model, its figures and its report, and back to predictions."""
