"""One training: batches, schedule, loop, what resumes it."""
