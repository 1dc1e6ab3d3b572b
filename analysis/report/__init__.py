"""The page of a sweep.

finish     table, probes and report of a sweep that has ended
assemble   one file that loads nothing, of the sections that there are
page       what a section draws from
parts      what it draws with
labels     what each rung is called
alone      its contrasts as a figure beside the page
sentences  what is said in words that are computed
tables     tables with what they sort by
sections/  one file a section; page.* are the page's frame and looks
"""
