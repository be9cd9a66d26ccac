"""The face of the product: application builder, HTTP routes, command line and demo."""
