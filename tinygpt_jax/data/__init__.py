"""Stories and tokens: where stories come from, the corpus on disk, and batches as a function of the step."""
