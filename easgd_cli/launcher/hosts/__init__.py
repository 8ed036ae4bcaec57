"""Other machines: how they come in, and what stands here for what is there."""
