"""What a program will take on a GPU that is not here: compiled for it, read, and estimated. Nothing is run."""
