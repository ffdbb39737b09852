"""Training: the LightningModule, objectives, sharding, checkpointing, studies."""
