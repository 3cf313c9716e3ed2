"""What turns features into predictions, and how wrong a prediction is."""
