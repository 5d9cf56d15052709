"""Random numbers that are the same on every device: a counter-based generator.

Philox4x64-10 (Salmon et al. 2011) turns a key and a counter into bits, with no state besides, so that any device can
compute any part of the stream. The bits are those of `numpy.random.Philox(key=seed)`. Numbers are made of them by
operations that IEEE 754 rounds exactly (+, -, *, /, sqrt, comparisons) in float64, so they too are equal to the bit.
"""

from gradflow.random.generator import Generator, default_generator, manual_seed
from gradflow.random.sampling import normal, permutation, uniform

__all__ = ["Generator", "default_generator", "manual_seed", "normal", "permutation", "uniform"]
