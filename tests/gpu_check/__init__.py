"""Everything of docs/gpu.md that one GPU can show, in a few minutes: python -m tests.gpu_check --help"""
