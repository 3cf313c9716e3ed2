"""What MLflow is told, and where a result comes from."""
