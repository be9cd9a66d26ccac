"""What `jina-clip-serve doctor` looks at: findings about the machine, the weights, the settings."""
