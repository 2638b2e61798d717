"""Tests of `service.analysis`."""
