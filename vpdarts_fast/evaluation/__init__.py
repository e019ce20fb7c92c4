"""Leave-one-out evaluation: of our supernets, and of any model that mixes operations by weights."""
