"""What lies in the folder of a run, read and written without knowing what training does with it."""
