"""Random numbers that are the same on every device: a counter-based generator.

Philox4x64-10 (Salmon et al. 2011) turns a key and a counter into random bits and keeps no other state, so any device
can compute any part of the stream. The bits are those of `numpy.random.Philox(key=seed)`. Floating-point numbers are
computed from them in float64 by operations that IEEE 754 rounds exactly (+, -, *, /, sqrt, comparisons), so they are
the same to the last bit, too.
"""

from gradflow.random.discrete import bernoulli, multinomial, randint
from gradflow.random.generator import Generator, default_generator, manual_seed
from gradflow.random.sampling import normal, permutation, uniform

__all__ = [
    "Generator",
    "bernoulli",
    "default_generator",
    "manual_seed",
    "multinomial",
    "normal",
    "permutation",
    "randint",
    "uniform",
]
