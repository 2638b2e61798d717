"""Files for operators: alerts, the check of the image, the audit of dependencies."""
