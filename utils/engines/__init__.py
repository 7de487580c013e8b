"""DeepSpeed: engines, their configuration, parameters as they arrive. Only what knows DeepSpeed may enter."""
