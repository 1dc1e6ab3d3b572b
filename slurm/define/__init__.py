"""What to run.

sweep    a list of runs with a question
load     sweeps by name, read from their files
seeds    the same sweep with other seeds
asked    what they were made to compare, checked
find     runs by what a person names
grid     sweeps without a file
search   spaces of recipes, and the sweeps that search them
tune     which cell of a space does best on held-out images
halving  tuning by rounds, each cut by successive halving
removal  runs that heal models without some of their mixing, from a table of choices
plan     what a launch would train
cost     what that would cost
"""
