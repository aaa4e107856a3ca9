"""Recipes: the stages of a whole job, in order, with every number in sight."""
