"""What will fail or be slow at a start, found before it."""
