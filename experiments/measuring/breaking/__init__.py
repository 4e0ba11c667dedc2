"""What `faults` needs: a process to be struck, damage to files, and what must come out all the same."""
