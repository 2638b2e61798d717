"""Tests of the site that is built from docs/."""
