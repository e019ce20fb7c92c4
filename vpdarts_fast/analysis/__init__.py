"""What a search does, looked at from outside; each part is a command with `--help`.

kendall        how well a supernet ranks the ops of each edge; needs `vpdarts-fast[analysis]`
cost_model     what a search would cost a GPU
"""
