"""What the documents point to exists."""

import ast
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
LINK = re.compile(r"\[`(test_\w+)`\]\((\.\./tests/\w+\.py)\)")


def test_every_row_of_the_reliability_page_names_tests_that_exist():
    """A promise whose proof was renamed or removed, or that never had one."""
    rows = [line for line in (DOCS / "reliability.md").read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    assert len(rows) > 20
    for row in rows[1:]:  # the first is the table's head
        links = LINK.findall(row)
        assert links, row
        for name, path in links:
            functions = [n for n in ast.walk(ast.parse((DOCS / path).read_text())) if isinstance(n, ast.FunctionDef)]
            assert name in {function.name for function in functions}, f"{name} is not in {path}"


def test_every_file_that_a_document_names_exists():
    for document in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(((?!http)[^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
