"""Somebody else's package, images conditioned on an angle: cond_pipelines knows nothing of it."""

from angle_adapter.adapter import AngleAdapter

__all__ = ["AngleAdapter"]
