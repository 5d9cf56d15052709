"""Benchmarks: `pytest benchmarks` runs them, `python -m benchmarks.report` turns a result into a table.

All rows of a group do the same work, so the ratio of two rows is a speed-up.
"""
