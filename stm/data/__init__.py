"""Sample sets: where images and labels come from, and the way from them to batches."""
