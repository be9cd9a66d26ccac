"""The page to try the service on, and its routes."""
