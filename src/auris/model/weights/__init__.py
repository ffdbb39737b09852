"""Reading and writing model weights: released layouts, checkpoint directories, exported directories."""
