import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_examples_run_as_written_and_print_what_they_say() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    printed: list[str] = []
    names: dict[str, object] = {"print": lambda value: printed.append(str(value))}
    for block in blocks:
        exec(block, names)
    comments = re.findall(r"print\(.*?\) +# (.*)", "\n".join(blocks))
    assert len(comments) == len(printed) == 5
    for comment, value in zip(comments, printed, strict=True):
        pattern = ".*".join(re.escape(part) for part in comment.split("..."))
        assert re.search(pattern, value), f"{value!r} is not {comment!r}"
