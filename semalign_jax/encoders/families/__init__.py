"""One file a family: configuration, Flax modules, weight rules."""
