"""A run of several processes: how they find each other, agree, speak with one voice, and end together."""
