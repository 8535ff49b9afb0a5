"""Samplers that mmpretrain lacks."""
