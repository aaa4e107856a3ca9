"""Puts SQuAD data from several sources together into one training set."""

from tinyqa_ray.configs import GatherConfig
from tinyqa_ray.gather.stage import GatherReport, gather

__all__ = ["GatherConfig", "GatherReport", "gather"]
