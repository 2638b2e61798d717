"""Tests of `service.theory`."""
