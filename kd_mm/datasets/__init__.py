"""Data sets and samplers that mmpretrain lacks."""
