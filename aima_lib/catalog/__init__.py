"""Recipes matched to hardware: what they say, which of them fits a machine, how one is put to work, and what was measured of it."""
