"""Where machines come from: one module (or package) for each provider, found by name in the registry."""
