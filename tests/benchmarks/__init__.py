"""What the gradients of several objectives cost, side by side with fixed weights: python -m tests.benchmarks --help"""
