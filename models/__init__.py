"""What is learnt: encoder, objectives, heads. Imports itself and torch alone."""
