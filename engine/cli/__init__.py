"""What command lines share, and a call from Python.

flags       flags from the fields of Run and How
numbers     readers of numbers for flags
console     one training on a screen
call        the same from Python: a result as a value
tables      rows on the screen and in a file
validate    weights before the validation images
repro       the command that repeats a run
streams     standard input, output and error as they may be found
timm_flags  what becomes of every flag of timm's train.py
"""
