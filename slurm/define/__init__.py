"""What to run.

sweep    a list of runs with a question, by name
grid     sweeps without a file
search   spaces of recipes: what grid and tune share
tune     which cell of a space does best on held-out images
halving  tuning by rounds, each cut by successive halving
plan     what a launch would train
cost     what that would cost
"""
