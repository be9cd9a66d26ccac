"""How a tower runs on a device: compiled, captured, warmed up and measured."""
