"""What Ray runs: the Router, the two towers and bulk jobs, and the tools they share."""
