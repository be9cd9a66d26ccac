"""The HTTP API: requests, answers, errors, keys and its description."""
