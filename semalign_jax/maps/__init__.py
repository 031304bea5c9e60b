"""The four maps: `AffineMap`, the fits, statistics of anchors, and maps on disk.

The public names are at the top of the library (`semalign_jax.fit_ortho`). Sweeps over many fits are
in `sweeps`; what is done with a map in `stitching` and `zeroshot`.
"""
