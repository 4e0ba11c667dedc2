"""Learning: the optimizer, the jitted step, checkpoints, metrics, and the loop that puts them together."""
