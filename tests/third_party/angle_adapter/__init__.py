"""Somebody else's package: images conditioned on an angle. It knows cond_pipelines; cond_pipelines knows nothing of it."""

from angle_adapter.adapter import AngleAdapter

__all__ = ["AngleAdapter"]
