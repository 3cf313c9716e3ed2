"""Adapting a fine-tuned model to the samples that it is asked about, without their labels."""
