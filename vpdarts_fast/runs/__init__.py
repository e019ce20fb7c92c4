"""Files of a run: their formats, how they are written and checked, and who may write them."""
