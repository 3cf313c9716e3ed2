"""What `lacuna` does beside the stages."""
