"""How public files spell a family's weights: `formats/FAMILY.py` has `convert(state_dict)`, which renames and reshapes
each layout that others publish to the family's own names, and drops nothing. A family without public files has none.
"""
