"""`cond-pipelines halves`: the same configuration trained on two disjoint halves of the data, and compared."""
