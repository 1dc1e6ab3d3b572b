"""What command lines share.

flags    flags from the fields of Run and How
console  one training on a screen
tables   rows on the screen and in a file
repro    the command that repeats a run
"""
