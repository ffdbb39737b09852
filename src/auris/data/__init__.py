"""Rows to packed batches: manifests, samples, the plan of the steps, the loader and the LightningDataModule."""
