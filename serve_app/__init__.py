"""What people use: the application, its HTTP API, clients, command line, demo and playground."""
