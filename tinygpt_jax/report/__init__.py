"""A run as pictures and as one page."""

from tinygpt_jax.report.page import write_report as write_report
