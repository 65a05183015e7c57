"""Running an explain graph: its spec, its session, its metadata."""
