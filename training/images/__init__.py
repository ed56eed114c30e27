"""Where images lie, one module a kind of source, and in which order they are seen."""
