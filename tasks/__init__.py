"""Tasks that the project ships: one file per family of data sets."""
