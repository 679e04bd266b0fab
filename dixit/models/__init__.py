"""Who sees, speaks and listens: CLIPs, perceptions, listeners, the speaker and its decoder."""
