"""What `gpu` measures, part by part.

A part is a function of a `Task` that gives pieces, each a title and a table, as soon as they are measured.

contests.py   startup, training, decoding: beside PyTorch and Hugging Face
profile.py    memory of an update, and the time of each of its kernels; trace.py reads them
runs.py       runs, deterministic, kill: what the command `experiments.train` does
worker.py     a part in a process of its own, with a time limit and a file for what it found
page.py       the goals, and the page
"""
