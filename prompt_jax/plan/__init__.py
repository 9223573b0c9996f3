"""`prompt-jax plan`: what a run will cost on a machine that is not here."""
