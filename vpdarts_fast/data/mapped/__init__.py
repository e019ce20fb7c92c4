"""Files of images as people have them, decoded once into a cache that is mapped and not loaded."""
