"""A package, so that none of this name that another library installed is found in its place."""
