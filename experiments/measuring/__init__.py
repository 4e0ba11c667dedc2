"""Measuring speed beside other libraries, and breaking runs on purpose: for who works on the project."""
