"""The two encoders in plain torch, and what they are computed with."""
