"""Small trainable parts that are added to an encoder: the adapter adds, the stage freezes."""
