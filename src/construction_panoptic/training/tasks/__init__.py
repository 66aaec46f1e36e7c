"""What is trained: a model, its losses, its validation."""
