"""The model as a graph: load, normalise, locate, build, simplify."""
