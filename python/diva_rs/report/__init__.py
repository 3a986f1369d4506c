"""One honest page about a run: `write` makes a self-contained HTML file of it.

    from diva_rs import report

    report.write(result)                      # or report.write("runs/a")

`run` and `evidence` read what is reported, `scores` compares before and after, `charts` draws. The page's
words are in ``templates/``.
"""

from diva_rs.report.write import write

__all__ = ["write"]
