"""Tests on pretrained models, which are fetched and converted once."""
