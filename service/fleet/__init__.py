"""The service under Ray Serve: replicas, and a front that sends requests to them."""
