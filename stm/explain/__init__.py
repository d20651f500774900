"""What merging does to the states of a model, measured and drawn."""
