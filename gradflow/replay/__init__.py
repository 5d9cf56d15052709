"""Captured steps: the backend calls of a training step, recorded once and replayed."""

from gradflow.replay.step import Captured, capture

__all__ = ["Captured", "capture"]
