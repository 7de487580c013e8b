"""What a process needs before it does anything: errors, ranks, random states. Only what every script uses may enter."""
