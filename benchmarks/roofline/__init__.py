"""How near the CPU's limits training is: `python -m benchmarks.roofline` measures, prints and draws.

- `ceilings`: the processor's peak of arithmetic, and the bandwidths of its caches and memory.
- `products`: the products of linear layers, by gradflow's tiles and by NumPy's BLAS.
- `tables`, `plot`: the figures as tables and as a picture.
"""
