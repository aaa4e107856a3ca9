"""SQuAD data of several sources put together into one set to learn from."""

from tinyqa_ray.configs import GatherConfig
from tinyqa_ray.gather.stage import GatherReport, gather

__all__ = ["GatherConfig", "GatherReport", "gather"]
