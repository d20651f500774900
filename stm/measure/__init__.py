"""What a model gets right and what it costs: predictions recorded and compared, operations counted."""
