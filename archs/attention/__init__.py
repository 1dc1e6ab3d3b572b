"""What the mixing of a layer, attention above all, can be besides whole: on its way out, gone, or over fewer tokens.

diluted    attention on its way to the identity of its input, and what remains when it is gone
removed    what stands in place of mixing that is gone
distilled  what is left learns what the layer did while it had its mixing
merging    tokens that attention finds alike become one
"""
