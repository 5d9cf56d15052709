"""Computational graphs as pictures and text: traces, explanations and their renderings."""
