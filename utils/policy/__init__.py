"""A policy at work: forward pass, log-probabilities, sampling. Rewards and losses may not enter."""
