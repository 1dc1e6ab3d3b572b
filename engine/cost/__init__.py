"""What a model costs.

profile     parameters, MACs and FLOPs, counted without memory
profiles    the rows of several models side by side
record      the number of record: MACs by torch's counter with formulas of our own
witnesses   other counters beside it, and what each of them misses
measure     speed and memory on one device
peak        the machine's own matrix-product rate
references  independent implementations to time against
"""
