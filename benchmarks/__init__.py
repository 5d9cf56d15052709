"""Measurements of speed: `pytest benchmarks` runs them, `python -m benchmarks.report` turns a result into a table.

Every row of a group does the same work, so the ratio of two rows is a speed-up.
"""
