"""Data pipeline: manifests, samples, the training plan, packing, the loader and the LightningDataModule."""
