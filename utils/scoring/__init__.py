"""What judges responses: objectives, score models, functions. Training may not enter."""
