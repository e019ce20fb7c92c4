"""Many searches, each a process of its own: on the cores of this machine or on a Ray cluster.

`queue` says which one is next and what follows when a process ends; `local` and `cluster` start them.
"""
