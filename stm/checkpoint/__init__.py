"""Official ViM checkpoints: what a file holds, what model that is, and the way back."""
