"""References written from the papers in NumPy loops; they import neither torch nor kd_mm."""
