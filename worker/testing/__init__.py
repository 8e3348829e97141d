"""Shipped fakes for the tests of engines and plugins, this project's and others'."""
