"""Loss modules: thin shells around kd_mm.functional."""
