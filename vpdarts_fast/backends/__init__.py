"""The backends, and `registry`, which says what serves what. Importing a part of one does not load all."""
