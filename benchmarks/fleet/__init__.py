"""A fleet of replicas, simulated with measured service times (docs/scaling.md)."""
