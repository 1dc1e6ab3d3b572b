"""One file a section of the page.

bias     built in and learned
claimed  families of claims
cost     cost and certainty
removal  mixing removed: before and after healing
"""
