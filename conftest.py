"""Leaves out what needs llvmlite, of the extra `fast`, where it is not installed."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("llvmlite") else ["backends/gradflow_numpy/native"]
