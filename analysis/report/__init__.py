"""The page of a sweep.

finish     table, probes and report of a sweep that has ended
assemble   one file that loads nothing
sentences  the result in words that are computed
tables     tables with what they sort by
sections/  one file a section; page.* are its template and looks
"""
