"""Where a checkpoint is found, and how its tensors are read and checked."""
