"""What every backend of an op has to be: the reference, candidate operations, shared values, derivatives."""
