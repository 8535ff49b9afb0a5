"""Pure functions: one equation each, one value per sample, no state, no collectives."""
