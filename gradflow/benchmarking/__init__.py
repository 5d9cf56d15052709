"""Training steps measured on several devices and batch sizes: what `gradflow bench` prints and draws.

`training` has the step that is measured, `measuring` takes its memory and its time, `results` says what they mean,
`picture` draws them.
"""
