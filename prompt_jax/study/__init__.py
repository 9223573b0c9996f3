"""Studies: a grid of runs, launched as fleets, and the report that their records give."""
