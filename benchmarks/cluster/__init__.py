"""Load on a fleet of processes or replicas, faults in it, and a count of the lost requests."""
