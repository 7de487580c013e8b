"""Training on examples, which stages 1 and 2 share. Nothing about rewards during training may enter."""
