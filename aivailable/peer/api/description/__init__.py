"""What the API takes and answers, declared once.

Parsers read what is declared here, and `/openapi.json` is made of the same, so they cannot differ.

* `fields`: what a request may hold, with ranges.
* `routes`: one table of routes, for router and document.
* `answer_types`: what `/cluster/v1` answers.
* `openapi`: the document.
"""
