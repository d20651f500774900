"""What a model costs and what it gets right: operations counted, samples read, predictions recorded and compared."""
