"""Recipes: the stages of a whole job, in order, with all their numbers."""
