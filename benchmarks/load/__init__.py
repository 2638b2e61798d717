"""Load: many clients, some of them slow or leaving; every request is accounted for twice."""
