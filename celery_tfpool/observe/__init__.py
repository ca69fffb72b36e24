"""What the worker shows to other systems.

Optional: each file needs a library of its own, and nothing but `pool.startup` and the command line knows this room.
Knows the pool and its predictors by the figures that they give.

    prometheus  metrics over HTTP
"""
