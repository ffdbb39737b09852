"""Read and write model weights: published layouts, checkpoints of runs, exported directories."""
