"""The model: encoder -> pooling -> the encoder's final norm -> projector -> LLM, every batch packed, nothing padded."""
