"""Samplers that mmpretrain lacks."""

from .class_instance_sampler import ClassInstanceSampler

__all__ = ['ClassInstanceSampler']
