"""What attention of `archs/deit.py` can be besides whole: on its way out, or over fewer tokens.

diluted  attention on its way to the identity of its input, and what remains when it is gone
merging  tokens that attention finds alike become one
"""
