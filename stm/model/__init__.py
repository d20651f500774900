"""Vision Mamba: the model, its layers, and its form for serving."""
