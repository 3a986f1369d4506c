"""One page about a run: ``report.write(result)`` or ``report.write("runs/a")`` makes an HTML file of it.
``report.write_judged(judgements, folder)`` makes a page and a table of judgements.

`run` and `evidence` read what is reported, `scores` compares before and after, `charts` draws. The page's
words are in ``templates/``.
"""

from diva_rs.report.judged import write_judged
from diva_rs.report.write import write

__all__ = ["write", "write_judged"]
