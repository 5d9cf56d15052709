"""Training steps measured on several devices and batch sizes: what `gradflow bench` prints and draws.

`training` has the step that is measured, `measuring` takes its memory and its time, `results` says what they mean,
`picture` draws them.
"""

DTYPES = ("float32", "float64", "float16", "bfloat16", "tf32", "autocast-float16", "autocast-bfloat16")
"""What a step can be computed in: the dtype of all arrays; float32 with products in TF32, or in half floats."""
