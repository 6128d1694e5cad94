"""The studio: a page on this machine over folders of data, runs and models."""
