"""One honest report per run, as a self-contained HTML file and as Markdown::

    from diva_rs.evaluation import report

    report.write(result)                      # or report.write("runs/a")

`run` reads what is reported, `of_run` and `of_evaluation` put it into words and tables (`blocks`), `html` and
`markdown` write those.
"""

from diva_rs.report.write import write

__all__ = ["write"]
