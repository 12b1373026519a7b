"""Numbers only: companding, resampling, blocks."""
