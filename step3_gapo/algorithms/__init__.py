"""Methods that mix scores or advantages: only these may enter. Those of gradients are in utils/combining."""
