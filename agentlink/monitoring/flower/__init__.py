"""Pages inside Flower's own server: under its address, its prefix, its authentication and its read-only mode."""
