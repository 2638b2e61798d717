"""What keeps a deployment up: alerts, the image's check, the audit of dependencies."""
