"""One page about a run: ``report.write(result)`` or ``report.write("runs/a")`` makes an HTML file of it.

`run` and `evidence` read what is reported, `scores` compares before and after, `charts` draws. The page's
words are in ``templates/``.
"""

from diva_rs.report.write import write

__all__ = ["write"]
