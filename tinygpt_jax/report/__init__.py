"""A run as pictures (`plots`) and as one page (`page`), drawn from what its folder holds."""

from tinygpt_jax.report.page import write_report as write_report
