"""What the benchmarks share: load, servers, processes, machine, work to measure."""
