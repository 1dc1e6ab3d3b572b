"""One file a section of the page.

bias  built in and learned
cost  cost and certainty
"""
