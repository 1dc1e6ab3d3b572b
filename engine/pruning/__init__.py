"""Weights or units that a run takes from the model that it starts from, and keeps at zero while it trains.

targets   weights that read places: first layers of flat nets, matrices over the tokens; how far each place is
units     the hidden units of a plain MLP, those tied by skips as one; the graph that they are nodes of
masks     what a run's criterion keeps, at its share; masks held while it trains
stages    runs that prune a finished run, at once or in rounds

criteria/ which weights or units go: a file each
"""
