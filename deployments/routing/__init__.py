"""What a Router does with a request: admits, prepares, cuts, sends, merges."""
