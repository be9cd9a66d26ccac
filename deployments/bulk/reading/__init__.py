"""How the rows of input files are found, cut into blocks and read."""
