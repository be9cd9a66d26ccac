"""What a tower replica is made of: a queue, a batcher, a device and the checks on it."""
